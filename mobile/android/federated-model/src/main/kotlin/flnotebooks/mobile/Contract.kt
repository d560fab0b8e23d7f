package flnotebooks.mobile

import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** A file beside the contract: the model, or its first state. */
data class NamedFile(val file: String, val bytes: Long, val sha256: String)

/** The images: [shape] is N, C, H, W; the network was trained on scale * pixel + bias, pixels being 0 to 255. */
data class Input(
    val name: String,
    val shape: List<Int>,
    val dtype: String,
    val layout: String,
    val colours: String,
    val scale: List<Float>,
    val bias: List<Float>,
    /** Who computes scale * pixel + bias: "caller" or "model". */
    val appliedBy: String,
) {
    val batch get() = shape[0]
    val channels get() = shape[1]
    val height get() = shape[2]
    val width get() = shape[3]
}

/** One number per class: [shape] is N, classes. */
data class Output(val name: String, val shape: List<Int>, val dtype: String)

/** A tensor of a signature. [gives]: of an output, what it is; [default]: of an input, its value unless told otherwise. */
data class Tensor(val shape: List<Int>, val dtype: String, val gives: String?, val default: Double?)

/** One function in the model's file. */
data class Signature(val inputs: Map<String, Tensor>, val outputs: Map<String, Tensor>)

/** The training step in the model's file, the network with parameters as inputs, and the first parameters. */
data class Training(val train: Signature, val infer: Signature, val state: NamedFile) {
    /** Names and shapes of the parameters, in the order in which a state holds them. */
    val parameters: Map<String, List<Int>> = train.inputs
        .filterKeys { it.startsWith(PARAMETER) }
        .toSortedMap(compareBy { it.removePrefix(PARAMETER).toInt() })
        .mapValues { it.value.shape }

    private companion object {
        const val PARAMETER = "parameter_"
    }
}

/** What a model takes, gives and is made of: the JSON that stands beside every exported model. */
data class Contract(
    val contract: Int,
    val name: String,
    val version: String,
    val runtime: String,
    val runtimeVersion: String,
    val bits: Int,
    val mode: String,
    val model: NamedFile,
    val input: Input,
    val output: Output,
    val labels: List<String>,
    /** Null where the file holds fixed weights. */
    val training: Training?,
) {
    companion object {
        /** The version of the contract that this program reads. */
        const val SUPPORTED = 1

        /** Reads the JSON of [file] and checks every value; the model itself is not looked at. */
        fun parse(json: String, file: String): Contract {
            val content = try {
                JSONObject(json)
            } catch (error: JSONException) {
                throw ContractUnreadable(file, "it is no JSON", error)
            }
            return read(Reader(file, "", content)).also(::check)
        }

        private fun read(root: Reader): Contract {
            val version = root.whole("contract").toInt()
            if (version != SUPPORTED) throw ContractVersionUnsupported(version, SUPPORTED)
            return Contract(
                contract = version,
                name = root.text("name"),
                version = root.text("version"),
                runtime = root.text("runtime"),
                runtimeVersion = root.text("runtime_version"),
                bits = root.whole("bits").toInt(),
                mode = root.text("mode"),
                model = namedFile(root.part("model")),
                input = input(root.part("input")),
                output = root.part("output").let { Output(it.text("name"), it.sizes("shape"), it.text("dtype")) },
                labels = root.texts("labels"),
                training = training(root.part("training")),
            )
        }

        private fun namedFile(part: Reader) = NamedFile(part.text("file"), part.whole("bytes"), part.text("sha256"))

        private fun input(part: Reader) = Input(
            name = part.text("name"),
            shape = part.sizes("shape"),
            dtype = part.text("dtype"),
            layout = part.text("layout"),
            colours = part.text("colours"),
            scale = part.numbers("scale"),
            bias = part.numbers("bias"),
            appliedBy = part.text("applied_by"),
        )

        private fun training(part: Reader): Training? {
            if (!part.has("train")) return null
            val (train, infer) = signature(part.part("train")) to signature(part.part("infer"))
            return Training(train, infer, namedFile(part.part("state")))
        }

        private fun signature(part: Reader): Signature {
            fun tensors(key: String) = part.part(key).let { all -> all.keys().associateWith { tensor(all.part(it)) } }
            return Signature(tensors("inputs"), tensors("outputs"))
        }

        private fun tensor(part: Reader) = Tensor(
            shape = part.sizes("shape"),
            dtype = part.text("dtype"),
            gives = if (part.has("gives")) part.text("gives") else null,
            default = if (part.has("default")) part.number("default") else null,
        )

        private fun check(contract: Contract) = with(contract) {
            fun require(holds: Boolean, key: String, found: Any, wanted: String) {
                if (!holds) throw ContractValueWrong(key, found, wanted)
            }
            if (runtime != "litert") throw OtherRuntime(runtime, "litert")
            for (about in listOfNotNull(model, training?.state)) {
                val plain = about.file !in listOf("", ".", "..") && '/' !in about.file
                require(plain, "file", about.file, "the plain name of a file beside the contract")
                require(about.bytes > 0, "bytes", about.bytes, "a size of 1 byte or more")
                require(about.sha256.length == 64, "sha256", about.sha256, "64 hexadecimal digits")
            }
            require(input.shape.size == 4 && input.shape.all { it > 0 }, "input.shape", input.shape, "[N, C, H, W]")
            require(input.layout == "NCHW", "input.layout", input.layout, "NCHW")
            require(input.dtype == "float32", "input.dtype", input.dtype, "float32")
            val colours = mapOf(1 to "GRAY", 3 to "RGB")[input.channels]
            require(input.colours == colours, "input.colours", input.colours, colours ?: "1 or 3 colours")
            val appliers = listOf("caller", "model")
            require(input.appliedBy in appliers, "input.applied_by", input.appliedBy, "caller or model")
            for ((key, values) in mapOf("input.scale" to input.scale, "input.bias" to input.bias)) {
                val fit = values.size == input.channels && values.all { it.isFinite() }
                require(fit, key, values, "${input.channels} finite numbers, one per colour")
            }
            require(output.shape.size == 2 && output.shape.all { it > 0 }, "output.shape", output.shape, "[N, classes]")
            require(output.dtype == "float32", "output.dtype", output.dtype, "float32")
            if (labels.size != output.shape[1]) throw LabelsDisagree(labels.size, output.shape[1])
            val different = labels.toSet().size == labels.size && "" !in labels
            require(different, "labels", labels, "different, non-empty texts")
            training?.let { check(it) }
        }

        /** Every parameter has its updated value among the step's outputs, and the state is as long as all of them. */
        private fun check(training: Training) {
            val given = training.train.outputs.values.mapNotNull { it.gives }
            val missing = (training.parameters.keys + "loss").filter { it !in given }
            if (training.parameters.isEmpty() || missing.isNotEmpty()) {
                throw ContractValueWrong("training.train.outputs", given, "the loss and every parameter")
            }
            val bytes = training.parameters.values.sumOf { shape -> Float.SIZE_BYTES * shape.product().toLong() }
            if (training.state.bytes != bytes) {
                throw ContractValueWrong("training.state.bytes", training.state.bytes, "$bytes, as the parameters have")
            }
        }
    }
}

/** How many values a tensor of these sizes has. */
internal fun List<Int>.product() = fold(1) { all, size -> all * size }

/** Values out of a JSON object of known types, or one [ContractUnreadable] that names the key. */
private class Reader(private val file: String, private val place: String, private val content: JSONObject) {
    fun has(key: String) = content.has(key)

    fun keys(): List<String> = content.keys().asSequence().toList()

    fun text(key: String): String = value(key) as? String ?: wrong(key, "a text")

    fun whole(key: String): Long = whole(value(key)) ?: wrong(key, "a whole number")

    fun number(key: String): Double = (value(key) as? Number)?.toDouble() ?: wrong(key, "a number")

    fun part(key: String) = Reader(file, "$place$key.", value(key) as? JSONObject ?: wrong(key, "an object"))

    fun texts(key: String) = list(key) { it as? String ?: wrong(key, "texts") }

    fun numbers(key: String) = list(key) { (it as? Number)?.toFloat() ?: wrong(key, "numbers") }

    fun sizes(key: String) = list(key) { whole(it)?.toInt() ?: wrong(key, "whole numbers") }

    private fun whole(value: Any): Long? = (value as? Int)?.toLong() ?: value as? Long

    private fun <T> list(key: String, each: (Any) -> T): List<T> {
        val array = value(key) as? JSONArray ?: wrong(key, "a list")
        return List(array.length()) { each(array.get(it)) }
    }

    private fun value(key: String): Any =
        if (content.has(key)) content.get(key) else throw ContractUnreadable(file, "'$place$key' is missing")

    private fun wrong(key: String, wanted: String): Nothing =
        throw ContractUnreadable(file, "'$place$key' is ${content.get(key)}, want $wanted")
}
