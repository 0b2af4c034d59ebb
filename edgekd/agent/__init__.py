"""The program that answers on a device: standard library, numpy and onnxruntime only, from Python 3.8 on.

It is sent there over the connection and leaves nothing behind; see `edgekd.devices`. Its files import each other
relatively, because on the device their package has another name.
"""
