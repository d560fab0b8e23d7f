package flnotebooks.mobile

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.json.JSONException
import org.json.JSONObject

/** What the server asks for in one round. */
internal class Work(
    val round: Int,
    val stateSha256: String,
    val epochs: Int,
    val batchSize: Int,
    val learningRate: Double,
    val seed: Long,
    val state: FloatArray,
)

/**
 * A state and a JSON header as one message, the form in which a federation's states travel: "FLN1", the header's length
 * (4 bytes), the payload's length (8 bytes), both big-endian, the header, and the payload, little-endian float32.
 */
internal object Frame {
    private val MAGIC = "FLN1".toByteArray()
    private const val PREFIX = 16

    fun message(header: JSONObject, state: FloatArray): ByteArray {
        val (text, payload) = header.toString().toByteArray() to state.toBytes()
        return ByteBuffer.allocate(PREFIX + text.size + payload.size).order(ByteOrder.BIG_ENDIAN)
            .put(MAGIC).putInt(text.size).putLong(payload.size.toLong()).put(text).put(payload)
            .array()
    }

    /** Throws [MessageMalformed], or [StateAltered] where the state's sha256 is not the one that the header names. */
    fun parse(message: ByteArray): Work {
        if (message.size < PREFIX || !message.copyOf(MAGIC.size).contentEquals(MAGIC)) {
            throw MessageMalformed("it does not begin with FLN1 and two lengths")
        }
        val prefix = ByteBuffer.wrap(message).order(ByteOrder.BIG_ENDIAN)
        val (header, payload) = prefix.getInt(4) to prefix.getLong(8)
        val rest = message.size - PREFIX
        if (header !in 0..rest || payload != (rest - header).toLong() || payload % Float.SIZE_BYTES != 0L) {
            throw MessageMalformed("it has ${message.size} bytes, other than it announces")
        }
        val state = message.copyOfRange(PREFIX + header, message.size)
        val work = try {
            val about = JSONObject(String(message, PREFIX, header))
            Work(
                round = about.getInt("round"),
                stateSha256 = about.getString("state_sha256"),
                epochs = about.getInt("epochs"),
                batchSize = about.getInt("batch_size"),
                learningRate = about.getDouble("learning_rate"),
                seed = about.getLong("seed"),
                state = state.toFloats(),
            )
        } catch (error: JSONException) {
            throw MessageMalformed("its header cannot be read: ${error.message}", error)
        }
        val sha256 = MessageDigest.getInstance("SHA-256").digest(state).hexadecimal()
        if (sha256 != work.stateSha256) throw StateAltered(work.round)
        return work
    }
}
