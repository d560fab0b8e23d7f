package flnotebooks.mobile

import android.graphics.Bitmap

/** An image as numbers: one byte per colour, row after row, the colours of a pixel beside each other. */
class Pixels(val width: Int, val height: Int, val channels: Int, val bytes: ByteArray) {
    init {
        if (bytes.isEmpty() || bytes.size != width * height * channels) {
            throw ImageWrong("${bytes.size} bytes", "$width×$height pixels of $channels bytes")
        }
    }

    /** Throws [ImageWrong] unless this is an image of the size and colours of [input]. */
    internal fun check(input: Input) {
        if (listOf(width, height, channels) != listOf(input.width, input.height, input.channels)) {
            val wanted = "${input.width}×${input.height} pixels, ${input.channels} colours"
            throw ImageWrong("$width×$height pixels, $channels colours", wanted)
        }
    }

    /** The number that the model takes for colour [channel] of pixel [place]. */
    internal fun value(input: Input, channel: Int, place: Int): Float {
        val pixel = (bytes[place * channels + channel].toInt() and 0xFF).toFloat()
        return if (input.appliedBy == "caller") pixel * input.scale[channel] + input.bias[channel] else pixel
    }

    companion object {
        /** [bitmap] stretched to the size that [input] wants; grey is 0.299 red + 0.587 green + 0.114 blue. */
        fun stretching(bitmap: Bitmap, input: Input): Pixels {
            val scaled = Bitmap.createScaledBitmap(bitmap, input.width, input.height, true)
            val colours = IntArray(input.width * input.height)
            scaled.getPixels(colours, 0, input.width, 0, 0, input.width, input.height)
            val bytes = ByteArray(colours.size * input.channels)
            for ((place, colour) in colours.withIndex()) {
                val (red, green, blue) = Triple(colour shr 16 and 0xFF, colour shr 8 and 0xFF, colour and 0xFF)
                if (input.channels == 3) {
                    bytes[place * 3] = red.toByte()
                    bytes[place * 3 + 1] = green.toByte()
                    bytes[place * 3 + 2] = blue.toByte()
                } else {
                    bytes[place] = ((299 * red + 587 * green + 114 * blue) / 1000).toByte()
                }
            }
            return Pixels(input.width, input.height, input.channels, bytes)
        }
    }
}
