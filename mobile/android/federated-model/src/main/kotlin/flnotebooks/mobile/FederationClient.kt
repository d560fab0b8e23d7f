package flnotebooks.mobile

import java.io.IOException
import java.net.HttpURLConnection
import java.net.URL
import org.json.JSONException
import org.json.JSONObject

/**
 * A client of a federation: asks the server for work, trains on this device's examples, sends the new state.
 *
 * [address]: the server's, https, or http on this device itself (a forwarded port). [token]: this client's own; keep it
 * in the Android Keystore, it is what proves who sends. Calls block: keep them off the main thread.
 */
class FederationClient(
    private val address: String,
    private val client: Int,
    private val token: String,
    private val timeoutMillis: Int = 60_000,
) {
    init {
        val url = URL(address)
        val loopback = url.host == "localhost" || url.host == "[::1]" || url.host.startsWith("127.")
        if (url.protocol != "https" && !(url.protocol == "http" && loopback)) throw AddressInsecure(address)
    }

    /**
     * Takes part in every round until the federation is over; returns how many there were.
     *
     * [onRound] hears each round's number and loss. Interrupting the thread ends it between two requests, by an
     * InterruptedException.
     */
    fun takePart(model: DeviceModel, examples: List<Example>, onRound: (Int, Double) -> Unit = { _, _ -> }): Int {
        if (!model.trains) throw NotTrainable(model.contract.name)
        val about = JSONObject().put("examples", examples.size).put("model_sha256", model.contract.model.sha256)
        call("join", about.toString().toByteArray())
        var rounds = 0
        while (true) {
            if (Thread.interrupted()) throw InterruptedException()
            val (status, body) = call("work", null)
            when (status) {
                HttpURLConnection.HTTP_GONE -> return rounds
                HttpURLConnection.HTTP_NO_CONTENT -> Thread.sleep(200)
                else -> {
                    val work = Frame.parse(body)
                    val loss = train(model, examples, work)
                    val header = JSONObject()
                        .put("kind", "update")
                        .put("round", work.round)
                        .put("client", client)
                        .put("num_examples", examples.size)
                        .put("state_sha256", work.stateSha256)
                        .put("loss", loss)
                    call("update", Frame.message(header, model.state))
                    rounds += 1
                    onRound(work.round, loss)
                }
            }
        }
    }

    /** One round's training; where it fails, the server is told why before the error is thrown on. */
    private fun train(model: DeviceModel, examples: List<Example>, work: Work): Double = try {
        model.state = work.state
        val loss = model.train(examples, work.epochs, work.batchSize, work.learningRate, work.seed)
        if (!loss.isFinite()) throw SettingWrong("the loss", loss, "a finite number: lower the learning rate")
        loss
    } catch (error: Exception) {
        val said = JSONObject().put("round", work.round).put("reason", error.message ?: error.javaClass.simpleName)
        call("failed", said.toString().toByteArray())
        throw error
    }

    /** One request: GET without a body, POST with one. 410 is an answer, every other status from 400 up an error. */
    private fun call(action: String, body: ByteArray?): Pair<Int, ByteArray> {
        val connection = URL("${address.trimEnd('/')}/$action/$client").openConnection() as HttpURLConnection
        try {
            connection.connectTimeout = timeoutMillis
            connection.readTimeout = timeoutMillis
            connection.setRequestProperty("Authorization", "Bearer $token")
            if (body != null) {
                connection.requestMethod = "POST"
                connection.doOutput = true
                connection.setRequestProperty("Content-Type", "application/octet-stream")
                connection.outputStream.use { it.write(body) }
            }
            val status = connection.responseCode
            val stream = if (status >= HttpURLConnection.HTTP_BAD_REQUEST) connection.errorStream else connection.inputStream
            val answer = stream?.use { it.readBytes() } ?: ByteArray(0)
            if (status >= HttpURLConnection.HTTP_BAD_REQUEST && status != HttpURLConnection.HTTP_GONE) {
                throw ServerRefused(action, status, reason(answer))
            }
            return status to answer
        } catch (error: IOException) {
            throw ServerUnreachable(action, error)
        } finally {
            connection.disconnect()
        }
    }

    private fun reason(answer: ByteArray): String = try {
        JSONObject(String(answer)).getString("error")
    } catch (_: JSONException) {
        "no reason given"
    }
}
