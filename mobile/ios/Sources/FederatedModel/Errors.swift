import Foundation

/// A contract that cannot be used, or a model that is not the one it speaks of.
public enum ContractError: LocalizedError, Equatable {
    case unreadable(file: String, reason: String)
    case versionUnsupported(found: Int, wanted: Int)
    case otherRuntime(found: String, wanted: String)
    case valueWrong(key: String, found: String, wanted: String)
    case labelsDisagree(labels: Int, outputs: Int)
    case modelMissing(file: String)
    case modelSizeWrong(file: String, found: Int, wanted: Int)
    case modelChecksumWrong(file: String, found: String, wanted: String)
    case modelDiffers(feature: String, found: String, wanted: String)

    public var errorDescription: String? {
        switch self {
        case let .unreadable(file, reason):
            return "Contract \(file) cannot be read: \(reason)."
        case let .versionUnsupported(found, wanted):
            return "The contract is of version \(found); this program reads \(wanted)."
        case let .otherRuntime(found, wanted):
            return "The model is made for \(found); want one for \(wanted)."
        case let .valueWrong(key, found, wanted):
            return "The contract's \(key) is \(found); want \(wanted)."
        case let .labelsDisagree(labels, outputs):
            return "There are \(labels) labels and the model has \(outputs) outputs."
        case let .modelMissing(file):
            return "The model \(file) is not beside its contract."
        case let .modelSizeWrong(file, found, wanted):
            return "The model \(file) has \(found) bytes, want \(wanted): it was \(found < wanted ? "truncated" : "altered")."
        case let .modelChecksumWrong(file, found, wanted):
            return "The model \(file) has the sha256 \(found.prefix(12))…, want \(wanted.prefix(12))…: it was altered."
        case let .modelDiffers(feature, found, wanted):
            return "The model's \(feature) is \(found); its contract says \(wanted)."
        }
    }
}

/// An image that the model cannot take.
public enum ImageError: LocalizedError, Equatable {
    case sizeWrong(found: String, wanted: String)
    case notDrawable(reason: String)

    public var errorDescription: String? {
        switch self {
        case let .sizeWrong(found, wanted):
            return "The image is \(found); the model takes \(wanted)."
        case let .notDrawable(reason):
            return "The image cannot be turned into pixels: \(reason)."
        }
    }
}

/// Training that cannot be done as asked, or that Core ML gave up.
public enum TrainingError: LocalizedError, Equatable {
    case notUpdatable(model: String)
    case fileDamaged(reason: String)
    case noExamples
    case labelWrong(found: Int, classes: Int)
    case settingRefused(name: String, found: String, wanted: String)
    case stateLengthWrong(found: Int, wanted: Int)
    case failed(reason: String)

    public var errorDescription: String? {
        switch self {
        case let .notUpdatable(model):
            return "The model \(model) cannot be trained on the device: its contract has no update."
        case let .fileDamaged(reason):
            return "The model's file does not hold a neural network that can be updated: \(reason)."
        case .noExamples:
            return "There is no example to train on."
        case let .labelWrong(found, classes):
            return "The label \(found) does not exist: want 0 to \(classes - 1)."
        case let .settingRefused(name, found, wanted):
            return "\(name) is \(found); this model's file allows \(wanted)."
        case let .stateLengthWrong(found, wanted):
            return "The state has \(found) values; this model has \(wanted)."
        case let .failed(reason):
            return "Core ML could not train the model: \(reason)."
        }
    }
}

/// A federation's server that cannot be used, or does not take what this client sends.
public enum FederationError: LocalizedError, Equatable {
    case addressInsecure(address: String)
    case unreachable(reason: String)
    case refused(action: String, status: Int, reason: String)
    case messageMalformed(reason: String)
    case stateAltered(round: Int)

    public var errorDescription: String? {
        switch self {
        case let .addressInsecure(address):
            return "The address \(address) would carry the token unencrypted: want https, or http to this device itself."
        case let .unreachable(reason):
            return "The server cannot be reached: \(reason)."
        case let .refused(action, status, reason):
            return "The server refuses to \(action): \(reason) (HTTP \(status))."
        case let .messageMalformed(reason):
            return "The server's message is not one of a federation: \(reason)."
        case let .stateAltered(round):
            return "The state of round \(round) was altered on its way: its sha256 differs."
        }
    }
}
