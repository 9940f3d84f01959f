"""Connects to TLS servers on 127.0.0.1, and prints for each whether its certificate is accepted for a given host name.

The arguments are a file with the root in PEM, and then a host name and a port for each server.
"""

import socket
import ssl
import sys

context = ssl.create_default_context(cafile=sys.argv[1])
for host, port in zip(sys.argv[2::2], sys.argv[3::2]):
    with socket.create_connection(("127.0.0.1", int(port))) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host):
                print("accepted")
        except ssl.SSLCertVerificationError as error:
            print("refused", error.verify_message)
