import CoreGraphics
import CoreML
import CoreVideo
import Foundation

/// An image as numbers: one byte per colour, row after row, the colours of a pixel beside each other.
public struct Pixels: Sendable {
    public let width: Int
    public let height: Int
    public let channels: Int
    public let bytes: [UInt8]

    public init(width: Int, height: Int, channels: Int, bytes: [UInt8]) throws {
        guard bytes.count == width * height * channels, !bytes.isEmpty else {
            let wanted = "\(width)×\(height) pixels of \(channels) bytes"
            throw ImageError.sizeWrong(found: "\(bytes.count) bytes", wanted: wanted)
        }
        (self.width, self.height, self.channels, self.bytes) = (width, height, channels, bytes)
    }

    /// `image` stretched to the size that `input` wants; grey is 0.299 red + 0.587 green + 0.114 blue.
    public init(stretching image: CGImage, to input: Contract.Input) throws {
        let (width, height) = (input.width, input.height)
        var drawn = [UInt8](repeating: 0, count: width * height * 4)
        let information = CGImageAlphaInfo.noneSkipLast.rawValue | CGBitmapInfo.byteOrder32Big.rawValue
        let done = drawn.withUnsafeMutableBytes { buffer -> Bool in
            guard let space = CGColorSpace(name: CGColorSpace.sRGB),
                  let context = CGContext(
                      data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8,
                      bytesPerRow: width * 4, space: space, bitmapInfo: information
                  )
            else { return false }
            context.interpolationQuality = .high
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard done else { throw ImageError.notDrawable(reason: "no bitmap of \(width)×\(height) pixels") }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(width * height * input.channels)
        for start in stride(from: 0, to: drawn.count, by: 4) {
            if input.channels == 3 {
                bytes.append(contentsOf: drawn[start ..< start + 3])
            } else {
                let (red, green, blue) = (Int(drawn[start]), Int(drawn[start + 1]), Int(drawn[start + 2]))
                bytes.append(UInt8((299 * red + 587 * green + 114 * blue) / 1000))
            }
        }
        try self.init(width: width, height: height, channels: input.channels, bytes: bytes)
    }

    /// What Core ML takes for this image: pixels where the model applies scale and bias, else the numbers themselves.
    /// `array`: the file's own description of its input, nil where it takes an image.
    func feature(for input: Contract.Input, array: MLMultiArrayConstraint?) throws -> MLFeatureValue {
        guard (width, height, channels) == (input.width, input.height, input.channels) else {
            let wanted = "\(input.width)×\(input.height) pixels, \(input.channels) colours"
            throw ImageError.sizeWrong(found: "\(width)×\(height) pixels, \(channels) colours", wanted: wanted)
        }
        guard let array else { return MLFeatureValue(pixelBuffer: try pixelBuffer()) }
        let (scalars, shape) = (numbers(input), array.shape.map(\.intValue))
        if array.dataType == .double {
            return MLFeatureValue(multiArray: MLMultiArray(MLShapedArray(scalars: scalars.map(Double.init), shape: shape)))
        }
        return MLFeatureValue(multiArray: MLMultiArray(MLShapedArray(scalars: scalars, shape: shape)))
    }

    /// `scale * pixel + bias`, colour after colour.
    private func numbers(_ input: Contract.Input) -> [Float] {
        var scalars = [Float](repeating: 0, count: bytes.count)
        let area = width * height
        for channel in 0 ..< channels {
            for place in 0 ..< area {
                let pixel = Float(bytes[place * channels + channel])
                scalars[channel * area + place] = pixel * input.scale[channel] + input.bias[channel]
            }
        }
        return scalars
    }

    private func pixelBuffer() throws -> CVPixelBuffer {
        let format = channels == 3 ? kCVPixelFormatType_32BGRA : kCVPixelFormatType_OneComponent8
        var made: CVPixelBuffer?
        guard CVPixelBufferCreate(nil, width, height, format, nil, &made) == kCVReturnSuccess, let buffer = made else {
            throw ImageError.notDrawable(reason: "no pixel buffer of \(width)×\(height) pixels")
        }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer)?.assumingMemoryBound(to: UInt8.self) else {
            throw ImageError.notDrawable(reason: "the pixel buffer has no memory")
        }
        let rowBytes = CVPixelBufferGetBytesPerRow(buffer)
        for row in 0 ..< height {
            for column in 0 ..< width {
                let from = (row * width + column) * channels
                if channels == 3 {
                    let to = row * rowBytes + column * 4
                    (base[to], base[to + 1], base[to + 2], base[to + 3]) = (bytes[from + 2], bytes[from + 1], bytes[from], 255)
                } else {
                    base[row * rowBytes + column] = bytes[from]
                }
            }
        }
        return buffer
    }
}
