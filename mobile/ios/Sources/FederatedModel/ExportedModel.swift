import CryptoKit
import Foundation

/// A contract and the model beside it, found whole: every other type here begins with one of these.
public struct ExportedModel: Sendable {
    public let contract: Contract
    /// The model: an `.mlpackage` (a folder) or an `.mlmodel`, not compiled.
    public let url: URL

    /// Reads the contract, then checks the model's size and sha256 against it.
    public init(contractAt url: URL) throws {
        let json: Data
        do {
            json = try Data(contentsOf: url)
        } catch {
            throw ContractError.unreadable(file: url.lastPathComponent, reason: error.localizedDescription)
        }
        contract = try Contract(json: json, file: url.lastPathComponent)
        self.url = url.deletingLastPathComponent().appendingPathComponent(contract.model.file)
        try check()
    }

    private func check() throws {
        let about = contract.model
        guard FileManager.default.fileExists(atPath: url.path) else {
            throw ContractError.modelMissing(file: about.file)
        }
        let (bytes, sha256) = try ExportedModel.digest(url)
        guard bytes == about.bytes else {
            throw ContractError.modelSizeWrong(file: about.file, found: bytes, wanted: about.bytes)
        }
        guard sha256 == about.sha256 else {
            throw ContractError.modelChecksumWrong(file: about.file, found: sha256, wanted: about.sha256)
        }
    }

    /// Size and sha256 of a file; of a folder, those of its files' lines `<sha256>  <path>`, sorted by path.
    static func digest(_ url: URL) throws -> (bytes: Int, sha256: String) {
        if try url.resourceValues(forKeys: [.isDirectoryKey]).isDirectory != true {
            let data = try Data(contentsOf: url, options: .mappedIfSafe)
            return (data.count, hexadecimal(SHA256.hash(data: data)))
        }
        var parts: [(path: String, bytes: Int, sha256: String)] = []
        for path in try FileManager.default.subpathsOfDirectory(atPath: url.path) {
            let file = url.appendingPathComponent(path)
            if try file.resourceValues(forKeys: [.isDirectoryKey]).isDirectory != true {
                let (bytes, sha256) = try digest(file)
                parts.append((path, bytes, sha256))
            }
        }
        parts.sort { $0.path.utf8.lexicographicallyPrecedes($1.path.utf8) }
        let lines = parts.map { "\($0.sha256)  \($0.path)\n" }.joined()
        return (parts.reduce(0) { $0 + $1.bytes }, hexadecimal(SHA256.hash(data: Data(lines.utf8))))
    }
}

/// The digits of a digest, lower case.
func hexadecimal(_ digest: SHA256.Digest) -> String {
    digest.map { String(format: "%02x", $0) }.joined()
}
