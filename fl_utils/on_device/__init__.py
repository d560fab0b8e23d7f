"""Training on the device: the CNN of Table 6.2 trained outside of torch (Hofman 2020, section 6.6), and its federation.

order       which example comes when: the same in every runtime, drawn by NumPy alone
lowered     the network and its step in operations whose gradient LiteRT has
litert      a file with a training step in it, and a trainer that needs NumPy and the runtime only
coreml      an updatable Core ML model, built layer by layer, and its checks
other       ONNX Runtime and ExecuTorch, which train in environments of their own
server      a federation's clients over loopback HTTP: mobile/standin/client.py is one
"""
