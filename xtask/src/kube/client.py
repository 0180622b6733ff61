"""What a pod does: downloads with huggingface_hub as it is, and says who the CDN's certificate is from."""

import hashlib
import os
import socket
import ssl
import sys

print("SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE"))
try:
    context = ssl.create_default_context()
    with context.wrap_socket(socket.create_connection((sys.argv[1], 443), 10), server_hostname=sys.argv[1]) as connection:
        # A client that leaves after the handshake is taken for one that does not trust the certificate.
        connection.sendall(f"HEAD / HTTP/1.1\r\nHost: {sys.argv[1]}\r\nConnection: close\r\n\r\n".encode())
        connection.recv(4096)
        issuer = dict(pair[0] for pair in connection.getpeercert()["issuer"])
        print("issuer", issuer.get("organizationName"), issuer.get("commonName"))
except ssl.SSLCertVerificationError as error:
    print("issuer unknown:", error.verify_message)
    sys.exit(0)

from huggingface_hub import hf_hub_download

path = hf_hub_download("lab/model", sys.argv[2], cache_dir="/tmp/cache")
with open(path, "rb") as file:
    print("sha256", hashlib.file_digest(file, "sha256").hexdigest())
