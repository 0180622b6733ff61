"""The requests adapter of the Dragonfly guide: REPO FILE -> the path of the downloaded file."""
import sys

import requests
from huggingface_hub import configure_http_backend, hf_hub_download
from requests.adapters import HTTPAdapter


class DragonflyAdapter(HTTPAdapter):
    def get_connection(self, url, proxies=None):
        if url.startswith("https://cdn-lfs.huggingface.co"):
            url = url.replace("https://", "http://")
        return super().get_connection(url, proxies)

    def add_headers(self, request, **kwargs):
        super().add_headers(request, **kwargs)
        if "example.com" in request.url:
            request.headers["X-Dragonfly-Registry"] = "https://example.com"


def backend():
    session = requests.Session()
    session.mount("http://", DragonflyAdapter())
    session.mount("https://", DragonflyAdapter())
    session.proxies = {"http": "http://127.0.0.1:65001"}
    return session


configure_http_backend(backend_factory=backend)
print(hf_hub_download(repo_id=sys.argv[1], filename=sys.argv[2]))
