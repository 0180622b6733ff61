"""The same for huggingface_hub 1 and later, which speak by httpx, or by its successor."""
import sys

import huggingface_hub
from huggingface_hub import hf_hub_download, set_client_factory

try:
    import httpx2 as httpx
except ImportError:
    import httpx

CDN = "cdn-lfs.huggingface.co"


class ThroughNode(httpx.BaseTransport):
    def __init__(self):
        self.straight = httpx.HTTPTransport()
        self.node = httpx.HTTPTransport(proxy=httpx.Proxy("http://127.0.0.1:65001"))

    def handle_request(self, request):
        if request.url.host != CDN:
            return self.straight.handle_request(request)
        request.url = request.url.copy_with(scheme="http")
        return self.node.handle_request(request)


set_client_factory(lambda: httpx.Client(transport=ThroughNode(), follow_redirects=True, timeout=None))
print(hf_hub_download(sys.argv[1], sys.argv[2]))
