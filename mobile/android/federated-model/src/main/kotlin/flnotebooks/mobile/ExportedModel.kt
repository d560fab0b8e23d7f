package flnotebooks.mobile

import android.content.res.AssetManager
import java.io.File
import java.io.IOException
import java.security.DigestInputStream
import java.security.MessageDigest

/** A contract and the model beside it, found whole: every other type here begins with one of these. */
class ExportedModel private constructor(val contract: Contract, val file: File, private val folder: File) {

    /** The parameters that the model was exported with; throws [NotTrainable] where its weights are fixed. */
    fun firstState(): FloatArray {
        val about = contract.training?.state ?: throw NotTrainable(contract.name)
        return checked(folder, about).readBytes().toFloats()
    }

    companion object {
        /** Reads the contract [file], then checks the size and sha256 of the model beside it. */
        fun open(file: File): ExportedModel {
            val json = try {
                file.readText()
            } catch (error: IOException) {
                throw ContractUnreadable(file.name, error.message ?: "there is no such file", error)
            }
            val contract = Contract.parse(json, file.name)
            val folder = file.absoluteFile.parentFile ?: throw ContractUnreadable(file.name, "it lies in no folder")
            return ExportedModel(contract, checked(folder, contract.model), folder)
        }

        /** Copies the assets in [folder] (a contract, a model, a state) into [target], each whole. */
        fun install(assets: AssetManager, folder: String, target: File) {
            target.mkdirs()
            for (name in assets.list(folder).orEmpty()) {
                val temporary = File(target, ".$name")
                assets.open("$folder/$name").use { from -> temporary.outputStream().use { from.copyTo(it) } }
                temporary.replace(File(target, name))
            }
        }

        private fun checked(folder: File, about: NamedFile): File {
            val file = File(folder, about.file)
            if (!file.isFile) throw FileMissing(about.file)
            if (file.length() != about.bytes) throw FileSizeWrong(about.file, file.length(), about.bytes)
            val digest = MessageDigest.getInstance("SHA-256")
            DigestInputStream(file.inputStream(), digest).use { stream ->
                val buffer = ByteArray(1 shl 16)
                while (stream.read(buffer) >= 0) continue
            }
            val sha256 = digest.digest().hexadecimal()
            if (sha256 != about.sha256) throw FileChecksumWrong(about.file, sha256, about.sha256)
            return file
        }
    }
}
