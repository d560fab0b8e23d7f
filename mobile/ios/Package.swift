// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "FederatedModel",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "FederatedModel", targets: ["FederatedModel"])],
    targets: [.target(name: "FederatedModel")]
)
