import Foundation

/// A client of a federation: asks the server for work, trains on this device's examples, sends the new state.
public struct FederationClient: Sendable {
    private let address: URL
    private let client: Int
    private let token: String
    private let session: URLSession

    /// `address`: the server's, https, or http on this device itself (a forwarded port). `token`: this client's own;
    /// keep it in the keychain, it is what proves who sends.
    public init(address: URL, client: Int, token: String, timeout: TimeInterval = 60) throws {
        let loopback = address.host.map { $0 == "localhost" || $0 == "::1" || $0.hasPrefix("127.") } ?? false
        guard address.scheme == "https" || (address.scheme == "http" && loopback) else {
            throw FederationError.addressInsecure(address: address.absoluteString)
        }
        let configuration = URLSessionConfiguration.ephemeral
        configuration.timeoutIntervalForRequest = timeout
        (self.address, self.client, self.token) = (address, client, token)
        session = URLSession(configuration: configuration)
    }

    private struct Join: Encodable {
        let examples: Int
        let modelSHA256: String

        enum CodingKeys: String, CodingKey {
            case examples
            case modelSHA256 = "model_sha256"
        }
    }

    private struct Failure: Encodable {
        let round: Int
        let reason: String
    }

    private struct Refusal: Decodable {
        let error: String
    }

    /// Takes part in every round until the federation is over; returns how many there were.
    ///
    /// `federationModel`: the sha256 by which the server names its model, where that is another file of the same network
    /// (a federation that is run with a LiteRT contract); nil takes this model's own. `onRound` hears each round's
    /// number and loss. Cancelling the task ends it between two requests.
    public func takePart(
        with personaliser: Personaliser, examples: [Example], federationModel: String? = nil,
        onRound: @Sendable (Int, Double) -> Void = { _, _ in }
    ) async throws -> Int {
        let sha256 = federationModel ?? personaliser.contract.model.sha256
        _ = try await post("join", Join(examples: examples.count, modelSHA256: sha256))
        var rounds = 0
        while true {
            try Task.checkCancellation()
            let (status, body) = try await call("work", body: nil)
            if status == 410 { return rounds }
            if status == 204 {
                try await Task.sleep(nanoseconds: 200_000_000)
                continue
            }
            let (work, state) = try Frame.parse(body)
            let loss = try await train(personaliser, examples, work, state)
            let header = Frame.Update(
                round: work.round, client: client, examples: examples.count, stateSHA256: work.stateSHA256, loss: loss
            )
            _ = try await call("update", body: Frame.message(header, state: await personaliser.state))
            rounds += 1
            onRound(work.round, loss)
        }
    }

    /// One round's training; where it fails, the server is told why before the error is thrown on.
    private func train(
        _ personaliser: Personaliser, _ examples: [Example], _ work: Frame.Work, _ state: [Float]
    ) async throws -> Double {
        do {
            try await personaliser.load(state: state)
            let settings = TrainingSettings(
                epochs: work.epochs, batchSize: work.batchSize, learningRate: work.learningRate, seed: work.seed
            )
            return try await personaliser.train(on: examples, settings: settings)
        } catch {
            _ = try await post("failed", Failure(round: work.round, reason: error.localizedDescription))
            throw error
        }
    }

    private func post(_ action: String, _ body: some Encodable) async throws -> Data {
        try await call(action, body: JSONEncoder().encode(body)).body
    }

    /// One request: GET without a body, POST with one. 410 is an answer, every other status from 400 up an error.
    private func call(_ action: String, body: Data?) async throws -> (status: Int, body: Data) {
        var request = URLRequest(url: address.appendingPathComponent(action).appendingPathComponent(String(client)))
        request.httpMethod = body == nil ? "GET" : "POST"
        request.httpBody = body
        request.setValue("Bearer \(token)", forHTTPHeaderField: "Authorization")
        request.setValue("application/octet-stream", forHTTPHeaderField: "Content-Type")
        let answer: (data: Data, response: URLResponse)
        do {
            answer = try await session.data(for: request)
        } catch let error as URLError where error.code != .cancelled {
            throw FederationError.unreachable(reason: error.localizedDescription)
        }
        guard let status = (answer.response as? HTTPURLResponse)?.statusCode else {
            throw FederationError.messageMalformed(reason: "it is no HTTP")
        }
        if status >= 400, status != 410 {
            let said = try? JSONDecoder().decode(Refusal.self, from: answer.data)
            throw FederationError.refused(action: action, status: status, reason: said?.error ?? "no reason given")
        }
        return (status, answer.data)
    }
}
