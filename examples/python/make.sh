#!/bin/sh
# Generates the Python code of the wire contract. It needs protoc and grpc_python_plugin: on Debian, the packages
# protobuf-compiler, libprotobuf-dev and protobuf-compiler-grpc.
# usage: make.sh [DIRECTORY]   the directory is "generated" beside this file by default

set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
out=${1:-$here/generated}
mkdir -p "$out"
protoc -I "$root/proto" -I "$root/tools/googleapis" -I /usr/include \
	--python_out="$out" --grpc_python_out="$out" --plugin=protoc-gen-grpc_python="$(command -v grpc_python_plugin)" \
	"$root"/proto/brevet/v1/*.proto "$root/tools/googleapis/google/rpc/status.proto"
