package flnotebooks.mobile

/** What ends the work of this library, in one sentence; each subclass is one kind of mismatch. */
sealed class MobileException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** A contract that is missing, is no JSON, or lacks a value. */
class ContractUnreadable(file: String, reason: String, cause: Throwable? = null) :
    MobileException("contract $file cannot be read: $reason", cause)

/** A contract of a version that this program does not read. */
class ContractVersionUnsupported(found: Int, wanted: Int) :
    MobileException("the contract is of version $found: this program reads $wanted")

/** A model that is made for another runtime. */
class OtherRuntime(found: String, wanted: String) :
    MobileException("the model is made for $found: want one for $wanted")

/** A value of the contract that cannot be. */
class ContractValueWrong(key: String, found: Any, wanted: String) :
    MobileException("the contract's $key is $found: want $wanted")

/** Labels that are not as many as the model's outputs. */
class LabelsDisagree(labels: Int, outputs: Int) :
    MobileException("there are $labels labels and the model has $outputs outputs")

/** A model or state that is not beside its contract. */
class FileMissing(file: String) : MobileException("$file is not beside its contract: export the model again")

/** A model or state that was truncated, or has grown. */
class FileSizeWrong(file: String, found: Long, wanted: Long) :
    MobileException("$file has $found bytes, want $wanted: it was ${if (found < wanted) "truncated" else "altered"}")

/** A model or state of the right size with other bytes in it. */
class FileChecksumWrong(file: String, found: String, wanted: String) :
    MobileException("$file has the sha256 ${found.take(12)}…, want ${wanted.take(12)}…: it was altered")

/** A model whose own signatures are not those of its contract. */
class ModelDiffers(what: String, found: String, wanted: String) :
    MobileException("the model's $what is $found: its contract says $wanted")

/** An image of another size or number of colours. */
class ImageWrong(found: String, wanted: String) : MobileException("the image is $found: the model takes $wanted")

/** A class that does not exist. */
class LabelWrong(found: Int, classes: Int) : MobileException("label $found does not exist: want 0 to ${classes - 1}")

/** Training with a file that holds fixed weights. */
class NotTrainable(model: String) : MobileException("the model $model has no training step in its file")

/** A number of epochs, a batch size or a learning rate that cannot be. */
class SettingWrong(name: String, found: Any, wanted: String) : MobileException("$name is $found: want $wanted")

/** Parameters of another number. */
class StateLengthWrong(found: Int, wanted: Int) : MobileException("the state has $found values: this model has $wanted")

/** A server address that would carry the token unencrypted. */
class AddressInsecure(address: String) :
    MobileException("$address would carry the token unencrypted: want https, or http to this device itself")

/** A server that does not answer. */
class ServerUnreachable(action: String, cause: Throwable) :
    MobileException("the server cannot be reached to $action: ${cause.message}", cause)

/** A server that does not take what this client sends. */
class ServerRefused(action: String, val status: Int, reason: String) :
    MobileException("the server refuses to $action: $reason (HTTP $status)")

/** A message that is not one of a federation. */
class MessageMalformed(reason: String, cause: Throwable? = null) :
    MobileException("the server's message is not one of a federation: $reason", cause)

/** A state whose sha256 is not the one in its message. */
class StateAltered(round: Int) :
    MobileException("the state of round $round was altered on its way: its sha256 differs")
