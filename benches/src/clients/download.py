"""What any user of the Hub writes: REPO FILE -> the path of the downloaded file."""
import sys

from huggingface_hub import hf_hub_download

print(hf_hub_download(sys.argv[1], sys.argv[2]))
