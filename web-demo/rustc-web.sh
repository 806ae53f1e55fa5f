#!/bin/sh
# Debian's rustc for wasm32-unknown-unknown, with the standard library's sources, unpacked into a folder: for machines
# where rustup cannot fetch the target. Usage: web-demo/rustc-web.sh FOLDER; FOLDER/rustc is the compiler then. 137 MB.
set -eu
mkdir -p "$1/deb"
cd "$1"
[ ! -e complete ] || exit 0
command -v apt-get >/dev/null || { echo "no apt-get here" >&2; exit 1; }
# Lists of long ago have a compiler of long ago.
[ "$(id -u)" != 0 ] || apt-get -qq update || true
# The library that a package depends on, whose name has a version.
library() { apt-cache depends "$1" | sed -n "s/ *Depends: \\($2[0-9.]*\\)\$/\\1/p"; }
std=$(library libstd-rust-web-dev libstd-rust-web-)
llvm=$(library "$std" libllvm)
(cd deb && apt-get -qq -o APT::Sandbox::User=root download rustc-web libstd-rust-web-dev rust-web-src "$std" "$llvm")
for package in deb/*.deb; do dpkg -x "$package" .; done
rm -r deb
bin=lib/rustlib/x86_64-unknown-linux-gnu/bin
mkdir -p "usr/$bin"
ln -sf "$(rustc --print sysroot)/$bin/rust-lld" "usr/$bin/rust-lld"
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s/usr/lib/x86_64-linux-gnu exec %s/usr/bin/rustc "$@"\n' "$PWD" "$PWD" >rustc
chmod +x rustc
touch complete
