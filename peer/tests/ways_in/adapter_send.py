"""The same for every requests: the URL is changed where the request is sent."""
import sys

import requests
from huggingface_hub import configure_http_backend, hf_hub_download
from requests.adapters import HTTPAdapter

CDN = "https://cdn-lfs.huggingface.co"
PROXY = {"http": "http://127.0.0.1:65001"}


class ThroughNode(HTTPAdapter):
    def send(self, request, **kwargs):
        if request.url.startswith(CDN):
            request.url = request.url.replace("https://", "http://", 1)
            kwargs["proxies"] = PROXY
        return super().send(request, **kwargs)


def backend():
    session = requests.Session()
    session.mount("https://", ThroughNode())
    return session


configure_http_backend(backend_factory=backend)
print(hf_hub_download(sys.argv[1], sys.argv[2]))
