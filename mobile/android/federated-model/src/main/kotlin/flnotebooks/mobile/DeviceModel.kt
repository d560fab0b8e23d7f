package flnotebooks.mobile

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Random
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.Tensor as RuntimeTensor

/** One image and its class, an index into the contract's labels. */
class Example(val image: Pixels, val label: Int)

/** What a model says of one image: the class of the largest output, and every output. */
class Classification(val label: String, val outputs: FloatArray)

/**
 * An exported model in LiteRT: classifies, and trains where its file has a training step.
 *
 * Not for several threads at once: keep it in one, and off the main thread.
 */
class DeviceModel(exported: ExportedModel, threads: Int = 1) : AutoCloseable {
    val contract: Contract = exported.contract
    private val training = contract.training
    private val inference = if (training == null) "serving_default" else "infer"
    private val interpreter = Interpreter(exported.file, Interpreter.Options().setNumThreads(threads))
    private var parameters: Map<String, ByteBuffer> = emptyMap()

    /** Whether [train] works on this model. */
    val trains get() = training != null

    /** The parameters, one after another in the order of the contract; empty where they are fixed in the file. */
    var state: FloatArray
        get() {
            val values = FloatArray(length)
            var start = 0
            for (buffer in parameters.values) {
                val part = buffer.floats()
                val size = part.remaining()
                part.get(values, start, size)
                start += size
            }
            return values
        }
        set(values) {
            val shapes = (training ?: throw NotTrainable(contract.name)).parameters
            if (values.size != length) throw StateLengthWrong(values.size, length)
            var start = 0
            parameters = shapes.mapValues { (_, shape) ->
                val size = shape.product()
                buffer(size).also { it.floats().put(values, start, size) }.also { start += size }
            }
        }

    private val length get() = training?.parameters?.values?.sumOf { it.product() } ?: 0

    init {
        try {
            check()
            if (training != null) state = exported.firstState()
        } catch (error: MobileException) {
            interpreter.close()
            throw error
        }
    }

    /** Writes the parameters as little-endian float32, whole or not at all. */
    fun saveState(file: File) {
        val temporary = File(file.absoluteFile.parentFile, ".${file.name}")
        temporary.writeBytes(state.toBytes())
        temporary.replace(file)
    }

    /** Takes the parameters that [saveState] wrote. */
    fun loadState(file: File) {
        state = file.readBytes().toFloats()
    }

    /** Classifies one image of the contract's size. */
    fun classify(image: Pixels): Classification {
        val outputs = outputs(listOf(image)).single()
        return Classification(contract.labels[outputs.indices.maxBy { outputs[it] }], outputs)
    }

    /** The outputs for each of [images]. */
    fun outputs(images: List<Pixels>): List<FloatArray> = images.chunked(contract.input.batch).flatMap { part ->
        val made = buffer(contract.output.shape.product())
        val given = mapOf<String, Any>(contract.input.name to filled(part)) + parameters
        interpreter.runSignature(given, mapOf<String, Any>(contract.output.name to made), inference)
        val values = made.floats()
        part.map { FloatArray(contract.labels.size).also { values.get(it) } }
    }

    /**
     * Trains by plain SGD on [examples], which stay here; returns the mean loss of the last epoch.
     *
     * [batchSize] 0 takes all examples at once. Null takes what the contract names. The order of the examples is drawn
     * from [seed] anew in each epoch.
     */
    fun train(
        examples: List<Example>,
        epochs: Int = 1,
        batchSize: Int? = null,
        learningRate: Double? = null,
        seed: Long = 0,
    ): Double {
        val step = (training ?: throw NotTrainable(contract.name)).train
        val most = contract.input.batch
        val size = (batchSize ?: minOf(most, examples.size)).let { if (it == 0) examples.size else it }
        val rate = learningRate ?: step.inputs["learning_rate"]?.default ?: Double.NaN
        if (examples.isEmpty()) throw SettingWrong("the number of examples", 0, "1 or more")
        if (epochs < 1) throw SettingWrong("epochs", epochs, "1 or more")
        if (size !in 1..most) throw SettingWrong("the batch size", size, "1 to $most, this file's")
        if (!(rate > 0 && rate.isFinite())) throw SettingWrong("the learning rate", rate, "a finite number above 0")
        val random = Random(seed)
        var loss = 0.0
        repeat(epochs) {
            val batches = examples.shuffled(random).chunked(size)
            loss = batches.sumOf { step(step, it, rate.toFloat()) * it.size } / examples.size
        }
        return loss
    }

    /** One step of SGD; the loss before it. Rows of the batch without an example have no label and do not count. */
    private fun step(step: Signature, examples: List<Example>, rate: Float): Double {
        val classes = contract.labels.size
        val labels = buffer(contract.input.batch * classes)
        val targets = labels.floats()
        for ((row, example) in examples.withIndex()) {
            if (example.label !in 0 until classes) throw LabelWrong(example.label, classes)
            targets.put(row * classes + example.label, 1f)
        }
        val rates = buffer(1).also { it.floats().put(rate) }
        val given = mapOf<String, Any>(
            contract.input.name to filled(examples.map { it.image }),
            "labels" to labels,
            "learning_rate" to rates,
        ) + parameters
        val made = step.outputs.mapValues { (_, tensor) -> buffer(tensor.shape.product()) }
        interpreter.runSignature(given, made, "train")
        val by = step.outputs.entries.associate { (name, tensor) -> tensor.gives to made.getValue(name) }
        parameters = parameters.mapValues { (name, _) -> by.getValue(name) }
        return by.getValue("loss").floats().get(0).toDouble()
    }

    /** [images] as the model's input, colour after colour; the rows that are left over are zero. */
    private fun filled(images: List<Pixels>): ByteBuffer {
        val input = contract.input
        val area = input.width * input.height
        val made = buffer(input.shape.product())
        val values = made.floats()
        for (image in images) {
            image.check(input)
            for (channel in 0 until input.channels) {
                for (place in 0 until area) values.put(image.value(input, channel, place))
            }
        }
        return made
    }

    /** Compares the file's signatures with the contract: names, sizes, types. */
    private fun check() {
        val wanted = if (training == null) listOf(inference) else listOf("train", "infer")
        val found = interpreter.signatureKeys.toList()
        if (!found.containsAll(wanted)) throw ModelDiffers("signatures", "$found", "$wanted")
        check(
            inference,
            mapOf(contract.input.name to contract.input.shape) + training?.parameters.orEmpty(),
            mapOf(contract.output.name to contract.output.shape),
        )
        training?.train?.let { step ->
            check("train", step.inputs.mapValues { it.value.shape }, step.outputs.mapValues { it.value.shape })
        }
    }

    private fun check(signature: String, inputs: Map<String, List<Int>>, outputs: Map<String, List<Int>>) {
        for ((kind, wanted, found) in listOf(
            Triple("inputs", inputs.keys, interpreter.getSignatureInputs(signature).toSet()),
            Triple("outputs", outputs.keys, interpreter.getSignatureOutputs(signature).toSet()),
        )) {
            if (wanted != found) throw ModelDiffers("$signature $kind", "$found", "$wanted")
        }
        for ((name, shape) in inputs) check(name, interpreter.getInputTensorFromSignature(name, signature), shape)
        for ((name, shape) in outputs) check(name, interpreter.getOutputTensorFromSignature(name, signature), shape)
    }

    private fun check(name: String, tensor: RuntimeTensor, shape: List<Int>) {
        val found = tensor.shape().toList()
        if (tensor.dataType() != DataType.FLOAT32 || found != shape) {
            throw ModelDiffers(name, "${tensor.dataType()} $found", "float32 $shape")
        }
    }

    override fun close() = interpreter.close()

    private fun buffer(values: Int): ByteBuffer =
        ByteBuffer.allocateDirect(Float.SIZE_BYTES * values).order(ByteOrder.nativeOrder())

    /** The floats of this buffer from its beginning, wherever LiteRT left its position. */
    private fun ByteBuffer.floats() = run {
        rewind()
        asFloatBuffer()
    }
}
