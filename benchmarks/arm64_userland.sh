#!/bin/sh
# Build a folder in which ONNX Runtime for 64-bit Arm runs on an x86 machine, under qemu's user-mode emulation.
#
#   benchmarks/arm64_userland.sh FOLDER
#
# Nothing is installed on the machine: apt downloads Debian's packages with a state of its own, they and the wheels
# are unpacked into FOLDER. Needs apt-get, dpkg-deb and Python with pip; takes about 200 MB and a minute or two.
# Then: export EDGEKD_ARM64_USERLAND=FOLDER, and `edgekd agree` knows the runtime emulated_arm64.
set -eu

if [ $# -ne 1 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
release=bookworm # Python 3.11, qemu 7.2
# 1.23.2 runs under qemu 7.2; 1.31.1 crashes there and 1.17.3 does not import
onnxruntime=1.23.2
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$folder/download
mkdir -p "$folder/root" "$folder/qemu" "$folder/site-packages" "$work/wheels"

# download ARCHITECTURE PACKAGE...: the packages and all that they need, into $work/ARCHITECTURE/archives
download() {
    state=$work/$1
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    : >"$state/status"
    echo "deb [signed-by=$keyring] $mirror $release main" >"$state/sources.list"
    cat >"$state/apt.conf" <<END
APT::Architecture "$1";
APT::Architectures { "$1"; };
APT::Sandbox::User "$(id -un)";
Debug::NoLocking "true";
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::Cache "$state";
Dir::Cache::archives "$state/archives";
Dir::Etc::sourcelist "$state/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
END
    shift
    APT_CONFIG=$state/apt.conf apt-get -qq update
    APT_CONFIG=$state/apt.conf apt-get -qq --no-install-recommends --download-only -y install "$@"
}

download amd64 qemu-user-static
for package in "$work"/amd64/archives/qemu-user-static_*.deb; do
    dpkg-deb -x "$package" "$work/qemu"
done
cp "$work/qemu/usr/bin/qemu-aarch64-static" "$folder/qemu/"

download arm64 python3-minimal libpython3-stdlib libstdc++6
for package in "$work"/arm64/archives/*.deb; do
    dpkg-deb -x "$package" "$folder/root"
done

${PYTHON:-python3} -m pip download --quiet --disable-pip-version-check --dest "$work/wheels" \
    --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
    --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    "onnxruntime==$onnxruntime" "numpy<2.4"
for wheel in "$work"/wheels/*.whl; do
    ${PYTHON:-python3} -m zipfile -e "$wheel" "$folder/site-packages"
done
rm -rf "$work"

PYTHONPATH=$folder/site-packages "$folder/qemu/qemu-aarch64-static" -L "$folder/root" \
    "$folder/root/usr/bin/python3.11" -c 'import onnxruntime; print("ONNX Runtime", onnxruntime.__version__)'
echo "export EDGEKD_ARM64_USERLAND=$folder"
