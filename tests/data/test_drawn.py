"""Characters drawn from strokes and fonts: the same for a seed, inked, told apart, no box for a lacking glyph."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from fl_utils.data import drawn, fetch, strokes, typefaces

PARTIES = {"hanzi": ["strokes", "fonts"], "hanzi_hands": ["strokes", "fonts"], "alphanumeric": ["fonts", "strokes"]}
TURNED = "M0,0 c0,10 10,20 20,20 s20,10 20,20"


@pytest.fixture(scope="module", params=drawn.NAMES)
def named(request):
    """Each data set, 12 characters of 9 writers at 24 pixels."""
    return request.param, drawn.load(request.param, 24, 12, 9, seed=3)


def images(examples, classes=12):
    """uint8 [writers, classes, H, W]."""
    return examples.x.numpy().reshape(-1, classes, *examples.x.shape[-2:])


def test_shapes_labels_and_writers(named):
    name, parties = named
    assert list(parties) == PARTIES[name]
    for examples in parties.values():
        assert examples.x.dtype == torch.uint8 and examples.x.shape == (9 * 12, 1, 24, 24)
        pairs = set(zip(examples.groups.tolist(), examples.y.tolist(), strict=True))
        assert pairs == {(w, c) for w in range(9) for c in range(12)}, "every writer writes every character once"


def test_ink_on_an_empty_background(named):
    for examples in named[1].values():
        assert (examples.x.flatten(1).max(1).values >= 100).all()
        share = (examples.x > 60).float().mean((1, 2, 3))
        assert share.min() > 0.02 and share.max() < 0.7
        rim = torch.cat([examples.x[..., 0, :], examples.x[..., -1, :], examples.x[..., 0], examples.x[..., -1]], -1)
        assert rim.float().median() == 0 and examples.x.min() == 0


def test_characters_differ_and_are_recognised_across_writers(named):
    """The nearest mean of the other writers' images names the character far more often than one in twelve."""
    for examples in named[1].values():
        x = images(examples).astype(float).reshape(9, 12, -1)
        apart = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1) + 1e9 * np.eye(12)
        assert apart.min() > 250, "two characters of one writer are nearly the same image"
        hits = 0
        for writer in range(9):
            means = np.delete(x, writer, axis=0).mean(0)
            hits += (np.linalg.norm(x[writer][:, None] - means, axis=-1).argmin(1) == np.arange(12)).sum()
        assert hits / (9 * 12) > 0.4


def test_writers_differ(named):
    for examples in named[1].values():
        x = images(examples).astype(float).reshape(9, -1)
        assert (np.linalg.norm(x[:, None] - x[None], axis=-1) + 1e9 * np.eye(9)).min() > 500


def test_a_seed_makes_the_same_and_another_others():
    name = "alphanumeric"
    parties = drawn.load(name, 24, 12, 9, seed=3)
    again, other = drawn.load(name, 24, 12, 9, seed=3), drawn.load(name, 24, 12, 9, seed=4)
    for party, examples in parties.items():
        assert torch.equal(examples.x, again[party].x)
        assert not torch.equal(examples.x, other[party].x)


def test_fewer_writers_and_classes_are_the_first_ones():
    name = "hanzi"
    parties = drawn.load(name, 24, 12, 9, seed=3)
    fewer = drawn.load(name, 24, 7, 4, seed=3)
    for party, examples in parties.items():
        assert torch.equal(fewer[party].x, torch.from_numpy(images(examples)[:4, :7].reshape(-1, 1, 24, 24)))


def test_samples_are_written_afresh():
    once, twice = (drawn.load("hanzi", 24, 3, 2, samples=n) for n in (1, 2))
    for party in once:
        pairs = twice[party].x.reshape(2, 3, 2, 24, 24)
        assert torch.equal(pairs[:, :, 0], once[party].x.reshape(2, 3, 24, 24))
        assert (pairs[:, :, 0] != pairs[:, :, 1]).flatten(2).any(2).all()
        assert twice[party].y.tolist() == [0, 0, 1, 1, 2, 2] * 2


def test_characters_are_gb2312s_in_its_order():
    level = drawn.gb2312_level_1()
    assert len(level) == len(set(level)) == 3755 and level[0] == "啊" and level[-1] == "座"
    hanzi, hands = drawn.characters("hanzi"), drawn.characters("hanzi_hands")
    assert len(hanzi) == 2380 and len(hands) == 3751
    for chosen in (hanzi, hands):
        assert chosen == [character for character in level if character in set(chosen)]
    assert "".join(drawn.characters("alphanumeric")) == (
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    )


def test_default_writers_are_at_least_twenty_styles():
    parties = drawn.load("hanzi", 12, 2)
    assert {party: len(examples.groups.unique()) for party, examples in parties.items()} == {"strokes": 60, "fonts": 40}
    assert len(drawn.load("hanzi", 12, 2, writers=1000)["fonts"]) == 2 * 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "kanji"}, "'kanji' is not a drawn data set: there are hanzi, hanzi_hands, alphanumeric"),
        ({"size": 7}, "size is 7: want a whole number from 8 up"),
        ({"size": 300}, "size is 300: want at most 256 pixels"),
        ({"size": 32.0}, "size is 32.0: want a whole number"),
        ({"classes": -1}, "classes is -1: want a whole number from 0 up"),
        ({"classes": 1}, "classes is 1: want 0 \\(all\\), or at least 2"),
        ({"classes": 63}, "classes is 63: alphanumeric has 62 characters; 0 takes them all"),
        ({"writers": -2}, "writers is -2: want a whole number from 0 up"),
        ({"seed": -1}, "seed is -1: want a whole number from 0 up"),
        ({"samples": 0}, "samples is 0: want a whole number from 1 up"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        drawn.load(**{"name": "alphanumeric", **arguments})


def test_a_lacking_or_blank_glyph_is_refused():
    font = fetch.fetch("alphanumeric")["DejaVuSans.ttf"]
    assert typefaces.outlines(font, ["A"], typefaces.LATIN).max() > 0
    with pytest.raises(ValueError, match=r"DejaVuSans\.ttf has no glyph for 啊"):
        typefaces.outlines(font, ["A", "啊"], typefaces.LATIN)
    with pytest.raises(ValueError, match=r"DejaVuSans\.ttf leaves ' ' blank"):
        typefaces.outlines(font, [" "], typefaces.LATIN)


def test_a_file_that_is_no_font_is_named(tmp_path):
    whole = fetch.fetch("alphanumeric")["cmr10.ttf"].read_bytes()
    for content in (b"", b"junk" * 100, whole[:40], whole[:2000]):
        (tmp_path / "broken.ttf").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.ttf: not a font file, or a damaged one"):
            typefaces.characters(tmp_path / "broken.ttf")


def test_outlines_are_distances():
    """Inside a broad stroke the distance grows by one pixel a pixel, and a weight moves the edge by itself."""
    font = fetch.fetch("alphanumeric")["DejaVuSans-Bold.ttf"]
    outline = typefaces.outlines(font, ["l"], typefaces.LATIN)[0]
    row = outline[len(outline) // 2] * typefaces.EM
    assert np.allclose(np.abs(np.diff(row)), 1, atol=1e-4) or np.count_nonzero(np.abs(np.diff(row)) < 0.99) <= 2
    styles = typefaces.Prints.draw(2, 0)
    same = typefaces.Prints(*(np.array([values[0], values[0]]) for values in vars(styles).values()))
    same.weight[:] = 0.0, 0.03
    same.grain[:] = 0
    thin, thick = typefaces.write(outline, same, 64, [1]).astype(float).sum((1, 2))
    assert thick > 1.2 * thin


def test_thicker_pens_leave_more_ink():
    pens = strokes.Pens.draw(2, 0)
    for name in vars(pens):
        getattr(pens, name)[1] = getattr(pens, name)[0]
    pens.radius[:] = 0.02, 0.03
    pens.wobble[:] = 0
    line = [np.array([[0.2, 0.5], [0.8, 0.5]])]
    thin, thick = strokes.write(line, pens, 64, [0]).astype(float).sum((1, 2))
    assert 1.3 < thick / thin < 1.7


def test_path_is_the_bezier_curve():
    def curve(*points, steps=13):
        t = np.linspace(0, 1, steps)[1:, None]
        a, b, c, d = np.array(points, float)
        return a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + d * t**3

    want = np.concatenate(
        [[[0, 0]], curve((0, 0), (0, 10), (10, 20), (20, 20)), curve((20, 20), (30, 20), (40, 30), (40, 40))]
    )
    np.testing.assert_allclose(strokes.path_points(TURNED), want, atol=1e-12)
    absolute = "M0,0C0,10,10,20,20,20S40,30,40,40"
    np.testing.assert_allclose(strokes.path_points(absolute), want, atol=1e-12)
    for wrong in ("", "M1,1", "c1,1,2,2,3,3", "M0,0L1,1", "M0,0c1,2,3"):
        with pytest.raises(ValueError, match="path"):
            strokes.path_points(wrong)


def write_wheel(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_kanjivg_is_read_without_the_numbers(tmp_path):
    svg = f'<svg><g><path id="s1" d="{TURNED}"/></g><text transform="matrix(1 0 0 1 4 5)">1</text></svg>'
    files = {"kanji/04e00.svg": svg, "kanji/04e00-Kaisho.svg": svg, "kanji/04e8c.svg": "<svg/>", "kanjivg/x.py": ""}
    wheel = write_wheel(tmp_path / "kanjivg.whl", files)
    assert strokes.kanjivg_characters(wheel) == {"一", "二"}
    (line,) = strokes.kanjivg(wheel, ["一"])["一"]
    np.testing.assert_allclose(line[-1], [40 / 109, 40 / 109])
    for character, message in (("二", "no stroke in '二'"), ("三", r"kanji/04e09\.svg")):
        with pytest.raises(ValueError, match=message):
            strokes.kanjivg(wheel, [character])
    wheel.write_bytes(wheel.read_bytes()[:200])
    for read in (strokes.kanjivg_characters, lambda path: strokes.kanjivg(path, ["一"])):
        with pytest.raises(ValueError, match=r"kanjivg\.whl"):
            read(wheel)


def test_hanzi_writer_medians_are_turned_upright(tmp_path):
    path = tmp_path / "hanzi-writer-data.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"一": {"medians": [[[0, 900], [1024, -124]]]}, "二": {"strokes": []}}.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (line,) = strokes.hanzi_writer(path, ["一"])["一"]
    np.testing.assert_allclose(line, [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match="no strokes of 三"):
        strokes.hanzi_writer(path, ["一", "三"])
    with pytest.raises(ValueError, match="damaged"):
        strokes.hanzi_writer(path, ["二"])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="damaged"):
        strokes.hanzi_writer(path, ["一"])
