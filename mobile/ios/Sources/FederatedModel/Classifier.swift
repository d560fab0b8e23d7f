import CoreML
import Foundation

/// What a model says of one image: the class of the largest output, and every output.
public struct Classification: Sendable, Equatable {
    public let label: String
    public let outputs: [Float]
}

/// An exported model, compiled and loaded.
public final class Classifier {
    public let contract: Contract
    private let model: MLModel
    private let array: MLMultiArrayConstraint?
    private let compiled: URL

    /// Compiles the model on the device, into a folder that lives as long as this classifier.
    public convenience init(_ exported: ExportedModel, configuration: MLModelConfiguration = .init()) async throws {
        try await self.init(file: exported.url, contract: exported.contract, configuration: configuration)
    }

    /// Checks that the model in `file` takes and gives what the contract says.
    init(file: URL, contract: Contract, configuration: MLModelConfiguration) async throws {
        self.contract = contract
        compiled = try await MLModel.compileModel(at: file)
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        array = try checkedInput(model.modelDescription.inputDescriptionsByName, contract.input)
        let wanted = contract.output
        guard let output = model.modelDescription.outputDescriptionsByName[wanted.name] else {
            let found = model.modelDescription.outputDescriptionsByName.keys.sorted().joined(separator: ", ")
            throw ContractError.modelDiffers(feature: "output", found: found, wanted: wanted.name)
        }
        guard output.type == .multiArray else {
            throw ContractError.modelDiffers(feature: "output", found: "no array", wanted: "an array")
        }
    }

    deinit {
        try? FileManager.default.removeItem(at: compiled)
    }

    /// Classifies one image of the contract's size.
    public func classify(_ image: Pixels) throws -> Classification {
        let feature = try image.feature(for: contract.input, array: array)
        let given = try MLDictionaryFeatureProvider(dictionary: [contract.input.name: feature])
        let made = try model.prediction(from: given)
        let array = made.featureValue(for: contract.output.name)?.multiArrayValue
        guard let array, array.count == contract.labels.count else {
            let found = "\(array?.count ?? 0) numbers"
            throw ContractError.modelDiffers(feature: "output", found: found, wanted: "\(contract.labels.count)")
        }
        let outputs = MLShapedArray<Float>(converting: array).scalars
        let best = outputs.indices.max { outputs[$0] < outputs[$1] }!
        return Classification(label: contract.labels[best], outputs: outputs)
    }
}

/// How the model's file describes the input of the contract: as an array, or nil for an image. Throws where they differ.
func checkedInput(
    _ descriptions: [String: MLFeatureDescription], _ wanted: Contract.Input
) throws -> MLMultiArrayConstraint? {
    guard let found = descriptions[wanted.name] else {
        let names = descriptions.keys.sorted().joined(separator: ", ")
        throw ContractError.modelDiffers(feature: "input", found: names, wanted: wanted.name)
    }
    switch wanted.appliedBy {
    case .model:
        guard let image = found.imageConstraint else {
            throw ContractError.modelDiffers(feature: "input", found: "no image", wanted: "an image")
        }
        guard (image.pixelsWide, image.pixelsHigh) == (wanted.width, wanted.height) else {
            let size = "\(image.pixelsWide)×\(image.pixelsHigh)"
            throw ContractError.modelDiffers(feature: "image", found: size, wanted: "\(wanted.width)×\(wanted.height)")
        }
        return nil
    case .caller:
        let array = found.multiArrayConstraint
        let shape = array?.shape.map(\.intValue) ?? []
        guard let array, shape == wanted.shape || shape == Array(wanted.shape.dropFirst()) else {
            throw ContractError.modelDiffers(feature: "input", found: "\(shape)", wanted: "\(wanted.shape)")
        }
        return array
    }
}
