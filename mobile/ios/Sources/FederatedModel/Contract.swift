import Foundation

/// What a model takes, gives and is made of: the JSON that stands beside every exported model.
public struct Contract: Decodable, Sendable {
    /// The version of the contract that this program reads.
    public static let supported = 1

    public let contract: Int
    public let name: String
    public let version: String
    public let runtime: String
    public let runtimeVersion: String
    public let bits: Int
    public let mode: String
    public let model: ModelFile
    public let input: Input
    public let output: Output
    public let labels: [String]
    public let training: Training

    enum CodingKeys: String, CodingKey {
        case contract, name, version, runtime, bits, mode, model, input, output, labels, training
        case runtimeVersion = "runtime_version"
    }

    /// The model's file, or folder, beside the contract.
    public struct ModelFile: Decodable, Sendable {
        public let file: String
        public let bytes: Int
        public let sha256: String

        enum CodingKeys: String, CodingKey {
            case file, bytes, sha256
        }
    }

    /// The images: `shape` is [N, C, H, W]; the network was trained on `scale * pixel + bias`, pixels being 0 to 255.
    public struct Input: Decodable, Sendable {
        public let name: String
        public let shape: [Int]
        public let dtype: String
        public let layout: String
        public let colours: String
        public let scale: [Float]
        public let bias: [Float]
        /// Who computes `scale * pixel + bias`.
        public let appliedBy: Applier

        public enum Applier: String, Decodable, Sendable {
            case caller, model
        }

        enum CodingKeys: String, CodingKey {
            case name, shape, dtype, layout, colours, scale, bias
            case appliedBy = "applied_by"
        }

        public var channels: Int { shape[1] }
        public var height: Int { shape[2] }
        public var width: Int { shape[3] }
    }

    /// One number per class: `shape` is [N, classes].
    public struct Output: Decodable, Sendable {
        public let name: String
        public let shape: [Int]
        public let dtype: String

        enum CodingKeys: String, CodingKey {
            case name, shape, dtype
        }
    }

    /// How the model is trained on the device; nil where it is not.
    public struct Training: Decodable, Sendable {
        public let update: Update?

        enum CodingKeys: String, CodingKey {
            case update
        }
    }

    /// The training inputs of an updatable Core ML model, and what it does unless told otherwise.
    public struct Update: Decodable, Sendable {
        public let inputs: [String: Tensor]
        public let defaults: Defaults

        enum CodingKeys: String, CodingKey {
            case inputs, defaults
        }

        public struct Tensor: Decodable, Sendable {
            public let shape: [Int]
            public let dtype: String

            enum CodingKeys: String, CodingKey {
                case shape, dtype
            }
        }

        public struct Defaults: Decodable, Sendable {
            public let batch: Int
            public let learningRate: Double
            public let epochs: Int

            enum CodingKeys: String, CodingKey {
                case batch, epochs
                case learningRate = "learning_rate"
            }
        }
    }

    /// Reads the JSON and checks every value that this program relies on; the model itself is not looked at.
    public init(json: Data, file: String) throws {
        struct Version: Decodable {
            let contract: Int
        }
        do {
            let found = try JSONDecoder().decode(Version.self, from: json).contract
            guard found == Contract.supported else {
                throw ContractError.versionUnsupported(found: found, wanted: Contract.supported)
            }
            self = try JSONDecoder().decode(Contract.self, from: json)
        } catch let error as DecodingError {
            throw ContractError.unreadable(file: file, reason: Contract.reason(error))
        }
        try check()
    }

    private func check() throws {
        func require(_ holds: Bool, _ key: String, _ found: Any, _ wanted: String) throws {
            guard holds else { throw ContractError.valueWrong(key: key, found: "\(found)", wanted: wanted) }
        }
        guard runtime == "coreml" else { throw ContractError.otherRuntime(found: runtime, wanted: "coreml") }
        let plain = !model.file.isEmpty && !model.file.contains("/") && model.file != "." && model.file != ".."
        try require(plain, "model.file", model.file, "the plain name of a file beside the contract")
        try require(model.bytes > 0, "model.bytes", model.bytes, "a size of 1 byte or more")
        try require(model.sha256.count == 64, "model.sha256", model.sha256, "64 hexadecimal digits")
        let image = input.shape.count == 4 && input.shape.allSatisfy { $0 > 0 }
        try require(image, "input.shape", input.shape, "four whole numbers from 1 up, [N, C, H, W]")
        try require(input.shape[0] == 1, "input.shape", input.shape, "one image at a time, [1, C, H, W]")
        try require(input.layout == "NCHW", "input.layout", input.layout, "NCHW")
        try require(input.dtype == "float32", "input.dtype", input.dtype, "float32")
        let colours = [1: "GRAY", 3: "RGB"][input.channels]
        try require(input.colours == colours, "input.colours", input.colours, colours ?? "1 or 3 colours")
        for (key, values) in [("input.scale", input.scale), ("input.bias", input.bias)] {
            let fit = values.count == input.channels && values.allSatisfy(\.isFinite)
            try require(fit, key, values, "\(input.channels) finite numbers, one per colour")
        }
        let logits = output.shape.count == 2 && output.shape.allSatisfy { $0 > 0 }
        try require(logits, "output.shape", output.shape, "two whole numbers from 1 up, [N, classes]")
        try require(output.dtype == "float32", "output.dtype", output.dtype, "float32")
        guard labels.count == output.shape[1] else {
            throw ContractError.labelsDisagree(labels: labels.count, outputs: output.shape[1])
        }
        let different = Set(labels).count == labels.count && !labels.contains("")
        try require(different, "labels", labels, "different, non-empty texts")
    }

    private static func reason(_ error: DecodingError) -> String {
        func place(_ context: DecodingError.Context) -> String {
            context.codingPath.map(\.stringValue).joined(separator: ".")
        }
        switch error {
        case let .keyNotFound(key, context):
            return "'\((context.codingPath + [key]).map(\.stringValue).joined(separator: "."))' is missing"
        case let .typeMismatch(_, context), let .valueNotFound(_, context):
            return "'\(place(context))' has a value of another type"
        case let .dataCorrupted(context):
            return context.codingPath.isEmpty ? "it is no JSON" : "'\(place(context))' has a value that does not exist"
        @unknown default:
            return error.localizedDescription
        }
    }
}
