package flnotebooks.mobile

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Files
import java.nio.file.StandardCopyOption

/** These values as little-endian float32: the form of a state in a file and on the wire. */
internal fun FloatArray.toBytes(): ByteArray {
    val buffer = ByteBuffer.allocate(Float.SIZE_BYTES * size).order(ByteOrder.LITTLE_ENDIAN)
    buffer.asFloatBuffer().put(this)
    return buffer.array()
}

/** The little-endian float32 values in these bytes. */
internal fun ByteArray.toFloats(): FloatArray {
    val values = FloatArray(size / Float.SIZE_BYTES)
    ByteBuffer.wrap(this).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(values)
    return values
}

/** The digits of a digest, lower case. */
internal fun ByteArray.hexadecimal() = joinToString("") { "%02x".format(it) }

/** Puts this file in the place of [target], whole or not at all. */
internal fun File.replace(target: File) {
    Files.move(toPath(), target.toPath(), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING)
}
