import Foundation

/// An updatable neural network's `.mlmodel` in memory: the weights of its updatable layers can be read and replaced.
///
/// Core ML gives the weights of a trained model, but has no documented way to set them; a federation has to, in every
/// round. The file is a Protocol Buffers message in which a layer's weights are one run of little-endian floats, so
/// they are replaced where they stand, and nothing else in the file moves. The state is laid out as PyTorch does:
/// layer after layer, the weights [O, I, H, W] or [O, I], then the biases.
struct NetworkFile {
    struct Layer {
        let name: String
        let weights: Range<Int>
        let biases: Range<Int>
    }

    /// Field numbers of Core ML's format (`Model.proto`, `NeuralNetwork.proto`).
    private enum Field {
        static let modelNeuralNetwork = 500
        static let networkLayers = 1
        static let layerName = 1
        static let layerIsUpdatable = 10
        static let layerConvolution = 100
        static let layerInnerProduct = 140
        static let convolutionWeights = 90
        static let convolutionBias = 91
        static let innerProductWeights = 20
        static let innerProductBias = 21
        static let weightsFloatValue = 1
    }

    private(set) var bytes: [UInt8]
    let layers: [Layer]

    /// Finds the updatable layers. Throws `TrainingError.fileDamaged` where the bytes are not such a file.
    init(_ data: Data) throws {
        bytes = [UInt8](data)
        var found: [Layer] = []
        for network in try NetworkFile.parts(of: bytes, in: bytes.indices, field: Field.modelNeuralNetwork) {
            for layer in try NetworkFile.parts(of: bytes, in: network, field: Field.networkLayers) {
                if let updatable = try NetworkFile.updatable(bytes, layer) { found.append(updatable) }
            }
        }
        guard !found.isEmpty else { throw TrainingError.fileDamaged(reason: "it has no updatable layer with weights") }
        layers = found
    }

    /// How many values the state has.
    var count: Int {
        layers.reduce(0) { $0 + ($1.weights.count + $1.biases.count) / 4 }
    }

    /// The weights and biases of every updatable layer.
    var state: [Float] {
        bytes.withUnsafeBytes { raw in
            places.joined().map { place in
                Float(bitPattern: UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: place, as: UInt32.self)))
            }
        }
    }

    /// Writes `state` over the weights. Throws where it has another length.
    mutating func replace(state: [Float]) throws {
        guard state.count == count else { throw TrainingError.stateLengthWrong(found: state.count, wanted: count) }
        let targets = places.joined()
        bytes.withUnsafeMutableBytes { raw in
            for (place, value) in zip(targets, state) {
                raw.storeBytes(of: value.bitPattern.littleEndian, toByteOffset: place, as: UInt32.self)
            }
        }
    }

    /// Where each value of the state begins.
    private var places: [StrideTo<Int>] {
        layers.flatMap { [$0.weights, $0.biases] }.map { stride(from: $0.lowerBound, to: $0.upperBound, by: 4) }
    }

    private static func updatable(_ bytes: [UInt8], _ layer: Range<Int>) throws -> Layer? {
        var name = "", isUpdatable = false
        var weights: Range<Int>?, biases: Range<Int>?
        var reader = ProtobufReader(bytes: bytes, range: layer)
        while let field = try reader.next() {
            switch (field.number, field.value) {
            case let (Field.layerName, .part(range)):
                name = String(decoding: bytes[range], as: UTF8.self)
            case let (Field.layerIsUpdatable, .number(value)):
                isUpdatable = value != 0
            case let (Field.layerConvolution, .part(range)):
                weights = try floats(bytes, range, Field.convolutionWeights)
                biases = try floats(bytes, range, Field.convolutionBias)
            case let (Field.layerInnerProduct, .part(range)):
                weights = try floats(bytes, range, Field.innerProductWeights)
                biases = try floats(bytes, range, Field.innerProductBias)
            default:
                continue
            }
        }
        guard isUpdatable else { return nil }
        guard let weights, let biases else {
            throw TrainingError.fileDamaged(reason: "the updatable layer '\(name)' has no 32-bit weights and biases")
        }
        return Layer(name: name, weights: weights, biases: biases)
    }

    /// The run of floats in the weights at `field` of `layer`.
    private static func floats(_ bytes: [UInt8], _ layer: Range<Int>, _ field: Int) throws -> Range<Int>? {
        guard let weights = try parts(of: bytes, in: layer, field: field).first else { return nil }
        let runs = try parts(of: bytes, in: weights, field: Field.weightsFloatValue)
        guard runs.count == 1, runs[0].count % 4 == 0 else { return nil }
        return runs[0]
    }

    /// The contents of every message or run at `field`.
    private static func parts(of bytes: [UInt8], in range: Range<Int>, field wanted: Int) throws -> [Range<Int>] {
        var found: [Range<Int>] = []
        var reader = ProtobufReader(bytes: bytes, range: range)
        while let field = try reader.next() {
            if field.number == wanted, case let .part(range) = field.value { found.append(range) }
        }
        return found
    }
}

/// Walks the fields of one Protocol Buffers message.
struct ProtobufReader {
    enum Value {
        case number(UInt64)
        case part(Range<Int>)
    }

    let bytes: [UInt8]
    private var position: Int
    private let end: Int

    init(bytes: [UInt8], range: Range<Int>) {
        (self.bytes, position, end) = (bytes, range.lowerBound, range.upperBound)
    }

    /// The next field, or nil at the end. Throws `TrainingError.fileDamaged` where the message is cut off or malformed.
    mutating func next() throws -> (number: Int, value: Value)? {
        guard position < end else { return nil }
        let key = try variableLength()
        let number = Int(truncatingIfNeeded: key >> 3)
        switch key & 7 {
        case 0: return (number, .number(try variableLength()))
        case 1: return (number, .part(try take(8)))
        case 2:
            let length = try variableLength()
            return (number, .part(try take(length <= UInt64(Int.max) ? Int(length) : Int.max)))
        case 5: return (number, .part(try take(4)))
        default: throw TrainingError.fileDamaged(reason: "a field at byte \(position) has no known kind")
        }
    }

    private mutating func take(_ length: Int) throws -> Range<Int> {
        guard length <= end - position else {
            throw TrainingError.fileDamaged(reason: "it ends within a field, at byte \(end)")
        }
        defer { position += length }
        return position ..< position + length
    }

    private mutating func variableLength() throws -> UInt64 {
        var value: UInt64 = 0
        for shift in stride(from: UInt64(0), to: 64, by: 7) {
            guard position < end else {
                throw TrainingError.fileDamaged(reason: "it ends within a number, at byte \(end)")
            }
            let byte = bytes[position]
            position += 1
            value |= UInt64(byte & 0x7F) << shift
            if byte & 0x80 == 0 { return value }
        }
        throw TrainingError.fileDamaged(reason: "a number at byte \(position) is too long")
    }
}
