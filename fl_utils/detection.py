"""Finding faces and cutting them out, the two stages of Figure 1 (Wang and Guo 2019, sections 3.1 and 4.1).

    detector = Detector()
    faces = detector.detect(image)                        # uint8 [H, W, 3], RGB
    face = crop(image, faces.boxes[chosen(faces, image.shape)], size=112)

The detector is MTCNN (Zhang et al. 2016): a small network slides over a pyramid of the image and proposes boxes, a
second one refuses most of them, a third one decides and finds five landmarks; each corrects the boxes of the one
before. A folder of pictures is worked through by :mod:`fl_utils.crops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from fl_utils.data import archives, cards, fetch

CHOICES = ("likely", "largest", "middle")
BATCH = 512  # boxes that a network looks at in one go


class Faces(NamedTuple):
    """What was found, most likely first. boxes: float32 [n, 4], left, top, right, bottom in pixels, which may reach
    beyond the image. scores: float32 [n], 0 to 1. landmarks: float32 [n, 5, 2], x and y of the eyes (the one on the
    image's left first), the tip of the nose, the corners of the mouth."""

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray


class Network(nn.Module):
    """One of the three: convolutions with PReLU and max-pooling, a dense layer (not in the first), and the heads.

    convolutions: (channels, kernel, pool) each, pool 0 = none. dense: units, 0 = none and heads that are convolutions,
    so that the network slides over an image of any size. heads: outputs of each; the first one's are "no face", "face".
    forward: float [N, 3, H, W] in [-1, 1] -> the probability of a face, then the other heads' outputs.
    """

    def __init__(self, convolutions: Sequence[tuple[int, int, int]], dense: int, heads: Sequence[int]) -> None:
        super().__init__()
        self.blocks, self.heads, before = [], [], 3
        for number, (width, kernel, pool) in enumerate(convolutions, 1):
            layers = [nn.Conv2d(before, width, kernel), nn.PReLU(width)]
            self._name(number, "conv", layers)
            self.blocks.append([*layers, nn.MaxPool2d(pool, 2, ceil_mode=True)] if pool else layers)
            before, last = width, number + 1
        self.dense: list[nn.Module] = []
        if dense:  # 3 x 3 places are left
            self.dense = [nn.Linear(9 * before, dense), nn.PReLU(dense)]
            self._name(last, "dense", self.dense)
            before, last = dense, last + 1
        for number, width in enumerate(heads, 1):
            head = nn.Linear(before, width) if dense else nn.Conv2d(before, width, 1)
            self.add_module(f"{'dense' if dense else 'conv'}{last}_{number}", head)
            self.heads.append(head)

    def _name(self, number: int, kind: str, layers: Sequence[nn.Module]) -> None:
        self.add_module(f"{kind}{number}", layers[0])
        self.add_module(f"prelu{number}", layers[1])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for block in self.blocks:
            for layer in block:
                x = layer(x)
        if self.dense:
            x = x.transpose(1, 3).flatten(1)  # the weights count columns before rows, and channels last
            for layer in self.dense:
                x = layer(x)
        face, *others = (head(x) for head in self.heads)
        return face.softmax(1)[:, 1], *others


def networks() -> dict[str, Network]:
    """The three networks (Zhang et al. 2016, Figure 2), untrained, by the names of their weights' files."""
    return {
        "pnet.pt": Network([(10, 3, 2), (16, 3, 0), (32, 3, 0)], 0, [2, 4]),
        "rnet.pt": Network([(28, 3, 3), (48, 3, 3), (64, 2, 0)], 128, [2, 4]),
        "onet.pt": Network([(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], 256, [2, 4, 10]),
    }


class Detector:
    """MTCNN with its trained weights.

    data_dir: a folder that holds the weights (card ``mtcnn``); they are fetched where it does not. min_face: the
    smallest face looked for, in pixels, 12 or more (a somewhat smaller one may still be found). factor: of two
    neighbouring levels of the pyramid. thresholds: the probability that each of the three networks must see.
    The defaults are the authors'.

    Raises ValueError on settings out of range or weights whose sha256 is wrong, DataNotFound without weights.
    """

    def __init__(
        self,
        data_dir: str | Path = "",
        min_face: int = 20,
        factor: float = 0.709,
        thresholds: Sequence[float] = (0.6, 0.7, 0.7),
        device: str = "cpu",
    ) -> None:
        if min_face < 12 or not 0 < factor < 1:
            raise ValueError(f"min_face is {min_face}, factor {factor}: want 12 pixels or more, and between 0 and 1")
        if len(thresholds) != 3 or not all(0 < threshold < 1 for threshold in thresholds):
            raise ValueError(f"thresholds are {thresholds}: want three probabilities, each between 0 and 1")
        self.min_face, self.factor, self.thresholds = min_face, factor, tuple(map(float, thresholds))
        self.device = torch.device(device)
        self.propose, self.refine, self.decide = networks().values()
        for network, path in zip((self.propose, self.refine, self.decide), _weights(data_dir), strict=True):
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            network.to(self.device).eval().requires_grad_(False)

    def scales(self, height: int, width: int) -> list[float]:
        """The pyramid's scales: at the first a face of ``min_face`` pixels is 12 wide, at the last the image is."""
        scale, scales = 12 / self.min_face, []
        while min(height, width) * scale >= 12:
            scales.append(scale)
            scale *= self.factor
        return scales

    @torch.inference_mode()
    def detect(self, image: np.ndarray | torch.Tensor) -> Faces:
        """The faces in one image, uint8 [H, W, 3] (RGB; a grey one three times). None are found where the image's
        shorter side is less than ``min_face``. Raises ValueError on another shape or type."""
        return self._cascade(_pixels(image, self.device))[-1]

    @torch.inference_mode()
    def stages(self, image: np.ndarray | torch.Tensor) -> list[np.ndarray]:
        """The boxes, float32 [n, 4], that each of the three networks leaves of an image; the last are detect's."""
        proposed, refined, faces = self._cascade(_pixels(image, self.device))
        return [proposed.cpu().numpy(), refined.cpu().numpy(), faces.boxes]

    def _cascade(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Faces]:
        from torchvision.ops import nms

        proposed = self._proposals(pixels)
        boxes, (scores, shifts) = self._seen(pixels, proposed, self.refine, 24, self.thresholds[1])
        kept = nms(boxes, scores, 0.7)
        refined = _square(_moved(boxes[kept], shifts[kept]))
        boxes, (scores, shifts, points) = self._seen(pixels, refined, self.decide, 48, self.thresholds[2])
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        landmarks = points.view(-1, 2, 5).transpose(1, 2) * sides[:, None] + boxes[:, None, :2] - 1
        boxes = _moved(boxes, shifts)
        kept = _not_nested(boxes, scores, 0.7)
        kept = kept[_visible(boxes[kept], *pixels.shape[2:])]
        return proposed, refined, Faces(*(each[kept].cpu().numpy() for each in (boxes, scores, landmarks)))

    def _proposals(self, pixels: torch.Tensor) -> torch.Tensor:
        """Square boxes [n, 4] that the first network takes for faces, at all scales."""
        from torchvision.ops import batched_nms, nms

        height, width = pixels.shape[2:]
        found = []
        for level, scale in enumerate(self.scales(height, width)):
            small = interpolate(pixels, (int(height * scale + 1), int(width * scale + 1)), mode="area")
            likely, shifts = self.propose(_normalised(small))
            rows, columns = (likely[0] >= self.thresholds[0]).nonzero(as_tuple=True)
            corners = 2 * torch.stack([columns, rows], 1).float()  # the network's stride is 2, its view 12 pixels
            boxes = torch.cat([(corners + 1) / scale, (corners + 12) / scale], 1).floor()
            found.append((boxes, likely[0, rows, columns], shifts[0, :, rows, columns].T, torch.full_like(rows, level)))
        if not found:
            return pixels.new_empty(0, 4)
        boxes, scores, shifts, levels = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = batched_nms(boxes, scores, levels, 0.5)
        kept = kept[nms(boxes[kept], scores[kept], 0.7)]
        boxes = boxes[kept]
        return _square(boxes + shifts[kept] * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2))

    def _seen(
        self, pixels: torch.Tensor, boxes: torch.Tensor, network: Network, side: int, threshold: float
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The boxes in which ``network`` sees a face, looking at ``side`` x ``side`` pixels, and what it says."""
        height, width = pixels.shape[2:]
        starts = boxes[:, :2].trunc().int().clamp(min=1) - 1
        stops = boxes[:, 2:].trunc().int().clamp(max=torch.tensor([width, height], device=boxes.device))
        inside = (stops > starts).all(1)
        boxes = boxes[inside]
        outputs = []
        for first in range(0, max(1, len(boxes)), BATCH):
            views = [
                interpolate(pixels[:, :, top:bottom, left:right], (side, side), mode="area")
                for (left, top), (right, bottom) in zip(
                    starts[inside][first : first + BATCH].tolist(),
                    stops[inside][first : first + BATCH].tolist(),
                    strict=True,
                )
            ]
            batch = torch.cat(views) if views else pixels.new_empty(0, 3, side, side)
            outputs.append(network(_normalised(batch)))
        told = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
        seen = told[0] > threshold
        return boxes[seen], [each[seen] for each in told]


def chosen(faces: Faces, shape: Sequence[int], choose: str = "likely") -> int:
    """Which of several faces: the most "likely", the "largest", or the one nearest the "middle" of an image of
    ``shape`` (height, width, ...). Raises ValueError where there is no face or no such choice."""
    if choose not in CHOICES:
        raise ValueError(f"choose is {choose!r}: want one of {', '.join(CHOICES)}")
    if not len(faces.boxes):
        raise ValueError("no face was found in this image: there is none to choose")
    starts, stops = faces.boxes[:, :2], faces.boxes[:, 2:]
    if choose == "largest":
        return int((stops - starts).prod(1).argmax())
    if choose == "middle":
        return int(np.linalg.norm((starts + stops) / 2 - np.array([shape[1], shape[0]]) / 2, axis=1).argmin())
    return int(faces.scores.argmax())


def enlarged(box: Sequence[float] | np.ndarray, shape: Sequence[int], enlarge: float = 0.15) -> tuple[int, ...]:
    """``box`` (left, top, right, bottom) with ``enlarge`` times its width more on the left and on the right and as
    much of its height above and below, cut off where an image of ``shape`` (height, width, ...) ends; whole pixels.

    Raises ValueError on a negative ``enlarge`` and on a box that is empty, not finite or outside the image.
    """
    corners = np.asarray(box, dtype=np.float64)
    if not (np.isfinite(enlarge) and enlarge >= 0):
        raise ValueError(f"enlarge is {enlarge}: want a share of the box's side, 0 or more")
    if corners.shape != (4,) or not np.isfinite(corners).all() or (corners[2:] <= corners[:2]).any():
        raise ValueError(f"box is {box}: want left, top, right, bottom, with left < right and top < bottom")
    margin = enlarge * np.tile(corners[2:] - corners[:2], 2) * [-1, -1, 1, 1]
    limits = np.array([shape[1], shape[0]] * 2)
    left, top, right, bottom = np.rint(np.clip(corners + margin, 0, limits)).astype(int).tolist()
    if left >= right or top >= bottom:
        raise ValueError(f"box is {box}: nothing of it lies in the image of {shape[1]} x {shape[0]} pixels")
    return left, top, right, bottom


def crop(image: np.ndarray, box: Sequence[float] | np.ndarray, size: int, enlarge: float = 0.15) -> np.ndarray:
    """The enlarged box cut out of ``image`` (uint8 [H, W, 3]) and scaled to [size, size, 3], without alignment
    (section 4.1); what is higher than wide gets wider. size 0: the pixels as they are.

    Raises ValueError on an image of another shape or type, a negative ``size``, and as :func:`enlarged` does."""
    from PIL import Image

    if size < 0:
        raise ValueError(f"size is {size}: want pixels, or 0 for no scaling")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image is {image.dtype} {list(image.shape)}: want uint8 [height, width, 3]")
    left, top, right, bottom = enlarged(box, image.shape, enlarge)
    face = np.ascontiguousarray(image[top:bottom, left:right])
    if not size:
        return face
    return np.asarray(Image.fromarray(face).resize((size, size), Image.Resampling.BILINEAR))


def _weights(data_dir: str | Path) -> list[Path]:
    """The files of the weights in the networks' order, each with the sha256 of its card."""
    card = cards.load("mtcnn")
    try:
        found = {path.name: path for path in cards.locate("mtcnn", data_dir).files}
    except cards.DataNotFound:
        found = fetch.fetch("mtcnn")
    for key, file in card.files.items():
        if wrong := archives.mismatch(found[key], file):
            raise ValueError(f"{found[key]}: not the weights of mtcnn: {wrong}")
    return [found[key] for key in networks()]


def _pixels(image: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """float [1, 3, H, W], 0 to 255."""
    pixels = image if isinstance(image, torch.Tensor) else torch.tensor(np.asarray(image))
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"the image is {pixels.dtype} {list(pixels.shape)}: want uint8 [height, width, 3]")
    return pixels.to(device).permute(2, 0, 1)[None].float()


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - 127.5) / 128


def _square(boxes: torch.Tensor) -> torch.Tensor:
    """Each box made as wide as high, about its middle, by its longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.amax(1, keepdim=True)
    starts = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return torch.cat([starts, starts + longer], 1)


def _moved(boxes: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Boxes whose four coordinates a network corrected, in shares of their sides (last pixel included)."""
    return boxes + shifts * (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)


def _visible(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Which boxes share at least a pixel with the image."""
    starts, stops = boxes[:, :2].clamp(min=0), boxes[:, 2:].clamp(max=torch.tensor([width, height]).to(boxes))
    return (stops - starts >= 1).all(1)


def _not_nested(boxes: torch.Tensor, scores: torch.Tensor, most: float) -> torch.Tensor:
    """Indices of boxes by falling score, less those of which a likelier one covers more than ``most``, or which cover
    as much of it: the overlap is counted against the smaller of two, so that a nose is no second face."""
    kept: list[int] = []
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    areas = sides.prod(1)
    for index in scores.argsort(stable=True).flip(0).tolist():  # of equal scores the later, as in the release
        starts = torch.maximum(boxes[kept, :2], boxes[index, :2])
        common = (torch.minimum(boxes[kept, 2:], boxes[index, 2:]) - starts + 1).clamp(min=0).prod(1)
        if not (common > most * torch.minimum(areas[kept], areas[index])).any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)
