# LFS_URL SHA256 SIZE FOLDER: a repository with one pointer, whose content `git lfs pull` downloads.
set -eu
git init --quiet "$4"
cd "$4"
git config user.name client
git config user.email client@example.org
git config lfs.url "$1"
echo '*.bin filter=lfs diff=lfs merge=lfs -text' > .gitattributes
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %s\n' "$2" "$3" > file.bin
git add .
git commit --quiet -m pointer
git lfs install --local --skip-smudge
git remote add origin "${1%/info/lfs}"
git lfs pull origin
