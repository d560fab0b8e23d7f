import CoreML
import Foundation

/// One image and its class, an index into the contract's labels.
public struct Example: Sendable {
    public let image: Pixels
    public let label: Int

    public init(image: Pixels, label: Int) {
        (self.image, self.label) = (image, label)
    }
}

/// How to train; nil takes what the model's file has as its default.
public struct TrainingSettings: Sendable {
    public var epochs: Int?
    public var batchSize: Int?
    public var learningRate: Double?
    public var seed: Int?

    public init(epochs: Int? = nil, batchSize: Int? = nil, learningRate: Double? = nil, seed: Int? = nil) {
        (self.epochs, self.batchSize, self.learningRate, self.seed) = (epochs, batchSize, learningRate, seed)
    }
}

/// Trains an updatable Core ML model on this device's examples; they stay here.
public actor Personaliser {
    public nonisolated let contract: Contract
    private let update: Contract.Update
    private let target: String
    private var network: NetworkFile

    /// Throws `TrainingError.notUpdatable` where the contract has no update.
    public init(_ exported: ExportedModel) throws {
        contract = exported.contract
        guard let update = contract.training.update else { throw TrainingError.notUpdatable(model: contract.name) }
        let targets = update.inputs.keys.filter { $0 != exported.contract.input.name }
        guard targets.count == 1, update.inputs.count == 2 else {
            let found = update.inputs.keys.sorted().joined(separator: ", ")
            let wanted = "\(contract.input.name) and the true label"
            throw ContractError.valueWrong(key: "training.update.inputs", found: found, wanted: wanted)
        }
        (self.update, target) = (update, targets[0])
        network = try NetworkFile(Data(contentsOf: exported.url, options: .mappedIfSafe))
    }

    /// The parameters: layer after layer, weights, then biases.
    public var state: [Float] { network.state }

    /// Sets the parameters, as a federation's server or an earlier `save(to:)` gives them.
    public func load(state: [Float]) throws {
        try network.replace(state: state)
    }

    /// Writes the parameters as little-endian float32, whole or not at all.
    public func save(to url: URL) throws {
        try Frame.bytes(of: network.state).write(to: url, options: .atomic)
    }

    /// A classifier with the parameters of now.
    public func classifier() async throws -> Classifier {
        let file = try written()
        defer { try? FileManager.default.removeItem(at: file) }
        return try await Classifier(file: file, contract: contract, configuration: .init())
    }

    /// Trains on `examples`; the parameters are the trained ones afterwards. Returns the loss of the last epoch.
    @discardableResult
    public func train(on examples: [Example], settings: TrainingSettings = .init()) async throws -> Double {
        guard !examples.isEmpty else { throw TrainingError.noExamples }
        if let wrong = examples.first(where: { !contract.labels.indices.contains($0.label) }) {
            throw TrainingError.labelWrong(found: wrong.label, classes: contract.labels.count)
        }
        let file = try written()
        defer { try? FileManager.default.removeItem(at: file) }
        let compiled = try await MLModel.compileModel(at: file)
        defer { try? FileManager.default.removeItem(at: compiled) }
        let configuration = MLModelConfiguration()
        configuration.parameters = parameters(settings, examples: examples.count)
        let description = try await MLModel.load(contentsOf: compiled).modelDescription
        try check(configuration, description)
        let names = network.layers.map(\.name)
        let batch = try batch(examples, description)
        let (state, loss) = try await Personaliser.run(compiled, batch, configuration, layers: names)
        try network.replace(state: state)
        return loss
    }

    private func written() throws -> URL {
        let folder = FileManager.default.temporaryDirectory
        let file = folder.appendingPathComponent(UUID().uuidString).appendingPathExtension("mlmodel")
        try Data(network.bytes).write(to: file, options: .atomic)
        return file
    }

    private func batch(_ examples: [Example], _ description: MLModelDescription) throws -> MLArrayBatchProvider {
        let array = try checkedInput(description.trainingInputDescriptionsByName, contract.input)
        let providers = try examples.map { example in
            let label = MLMultiArray(MLShapedArray(scalars: [Int32(example.label)], shape: [1]))
            let image = try example.image.feature(for: contract.input, array: array)
            let values = [contract.input.name: image, target: MLFeatureValue(multiArray: label)]
            return try MLDictionaryFeatureProvider(dictionary: values)
        }
        return MLArrayBatchProvider(array: providers)
    }

    private func parameters(_ settings: TrainingSettings, examples: Int) -> [MLParameterKey: Any] {
        var parameters: [MLParameterKey: Any] = [
            .epochs: settings.epochs ?? update.defaults.epochs,
            .miniBatchSize: settings.batchSize.map { $0 == 0 ? examples : $0 } ?? update.defaults.batch,
            .learningRate: settings.learningRate ?? update.defaults.learningRate,
            .shuffle: true,
        ]
        if let seed = settings.seed { parameters[.seed] = seed & 0x7FFF_FFFF }
        return parameters
    }

    /// Compares the settings with what the file allows, before an update is begun in vain.
    private func check(_ configuration: MLModelConfiguration, _ description: MLModelDescription) throws {
        let descriptions = description.parameterDescriptionsByKey
        for (key, value) in configuration.parameters ?? [:] {
            guard let constraint = descriptions[key]?.numericConstraint, let number = value as? NSNumber else { continue }
            let allowed = constraint.enumeratedNumbers ?? []
            let within = number.doubleValue >= constraint.minNumber.doubleValue
                && number.doubleValue <= constraint.maxNumber.doubleValue
            guard allowed.isEmpty ? within : allowed.contains(number) else {
                let range = "\(constraint.minNumber) to \(constraint.maxNumber)"
                let several = allowed.map(\.stringValue).sorted().joined(separator: ", ")
                let wanted = allowed.isEmpty ? range : several
                throw TrainingError.settingRefused(name: key.name, found: number.stringValue, wanted: wanted)
            }
        }
    }

    private static func run(
        _ compiled: URL, _ batch: MLBatchProvider, _ configuration: MLModelConfiguration, layers: [String]
    ) async throws -> (state: [Float], loss: Double) {
        try await withCheckedThrowingContinuation { continuation in
            let finished: (MLUpdateContext) -> Void = { context in
                continuation.resume(with: Result { try outcome(context, layers: layers) })
            }
            do {
                let handlers = MLUpdateProgressHandlers(
                    forEvents: [.epochEnd], progressHandler: { _ in }, completionHandler: finished
                )
                let task = try MLUpdateTask(
                    forModelAt: compiled, trainingData: batch, configuration: configuration, progressHandlers: handlers
                )
                task.resume()
            } catch {
                continuation.resume(throwing: TrainingError.failed(reason: error.localizedDescription))
            }
        }
    }

    private static func outcome(_ context: MLUpdateContext, layers: [String]) throws -> (state: [Float], loss: Double) {
        if let error = context.task.error { throw TrainingError.failed(reason: error.localizedDescription) }
        guard let loss = (context.metrics[.lossValue] as? NSNumber)?.doubleValue, loss.isFinite else {
            throw TrainingError.failed(reason: "the loss is not finite")
        }
        var state: [Float] = []
        for layer in layers {
            for kind in [MLParameterKey.weights, MLParameterKey.biases] {
                guard let values = try context.model.parameterValue(for: kind.scoped(to: layer)) as? MLMultiArray else {
                    throw TrainingError.failed(reason: "layer \(layer) has no \(kind.name) after the update")
                }
                state.append(contentsOf: MLShapedArray<Float>(converting: values).scalars)
            }
        }
        return (state, loss)
    }
}
