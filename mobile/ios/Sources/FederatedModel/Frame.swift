import CryptoKit
import Foundation

/// A state and a JSON header as one message, the form in which a federation's states travel:
/// "FLN1", the header's length (4 bytes), the payload's length (8 bytes), both big-endian, the header, and the payload,
/// little-endian float32.
enum Frame {
    static let magic = Data("FLN1".utf8)
    static let prefix = 16

    /// What the server asks for in one round.
    struct Work: Decodable {
        let round: Int
        let stateSHA256: String
        let epochs: Int
        let batchSize: Int
        let learningRate: Double
        let seed: Int

        enum CodingKeys: String, CodingKey {
            case round, epochs, seed
            case stateSHA256 = "state_sha256"
            case batchSize = "batch_size"
            case learningRate = "learning_rate"
        }
    }

    /// What goes before an update.
    struct Update: Encodable {
        var kind = "update"
        let round: Int
        let client: Int
        let examples: Int
        let stateSHA256: String
        let loss: Double

        enum CodingKeys: String, CodingKey {
            case kind, round, client, loss
            case examples = "num_examples"
            case stateSHA256 = "state_sha256"
        }
    }

    static func message(_ header: Update, state: [Float]) throws -> Data {
        let text = try JSONEncoder().encode(header)
        let payload = bytes(of: state)
        var message = magic
        withUnsafeBytes(of: UInt32(text.count).bigEndian) { message.append(contentsOf: $0) }
        withUnsafeBytes(of: UInt64(payload.count).bigEndian) { message.append(contentsOf: $0) }
        message.append(text)
        message.append(payload)
        return message
    }

    /// The header and the state of a message; the state's sha256 is the one that the header names.
    static func parse(_ message: Data) throws -> (work: Work, state: [Float]) {
        let message = Data(message)
        guard message.count >= prefix, message.prefix(4) == magic else {
            throw FederationError.messageMalformed(reason: "it does not begin with FLN1 and two lengths")
        }
        let (header, payload) = message.withUnsafeBytes { raw in
            (UInt64(UInt32(bigEndian: raw.loadUnaligned(fromByteOffset: 4, as: UInt32.self))),
             UInt64(bigEndian: raw.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        }
        let rest = UInt64(message.count - prefix)
        guard header <= rest, payload == rest - header, payload % 4 == 0 else {
            throw FederationError.messageMalformed(reason: "it has \(message.count) bytes, other than it announces")
        }
        let start = prefix + Int(header)
        let work: Work
        do {
            work = try JSONDecoder().decode(Work.self, from: message[prefix ..< start])
        } catch {
            throw FederationError.messageMalformed(reason: "its header cannot be read: \(error)")
        }
        let state = message[start...]
        guard hexadecimal(SHA256.hash(data: state)) == work.stateSHA256 else {
            throw FederationError.stateAltered(round: work.round)
        }
        return (work, floats(in: Data(state)))
    }

    static func bytes(of state: [Float]) -> Data {
        state.map(\.bitPattern.littleEndian).withUnsafeBytes { Data($0) }
    }

    static func floats(in data: Data) -> [Float] {
        data.withUnsafeBytes { raw in
            stride(from: 0, to: raw.count - raw.count % 4, by: 4).map { place in
                Float(bitPattern: UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: place, as: UInt32.self)))
            }
        }
    }
}
