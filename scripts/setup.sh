# Shared by ./quickstart and ./runtests: installs what is missing and builds. Sourced, not run.
#
#   hf_install            Debian packages (apt-get; root or sudo; HOLDFAST_NO_INSTALL=1 skips it)
#   hf_build PRESET       configures and builds a preset of CMakePresets.json
#   hf_venv PACKAGES...   a Python environment in build/venv with these packages
#   hf_step TEXT          says what comes next, with the time since the start
set -euo pipefail

HF_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HF_START=$SECONDS
export HOLDFAST_MODELS=${HOLDFAST_MODELS:-$HF_ROOT/models}

HF_PACKAGES=(g++ cmake ninja-build ccache pkg-config ca-certificates git
  libssl-dev libsqlite3-dev librocksdb-dev libxxhash-dev libcpp-httplib-dev
  nlohmann-json3-dev libcli11-dev doctest-dev cargo-web rustc-web
  python3 python3-pip python3-venv nodejs npm)

hf_step() {
  local s=$((SECONDS - HF_START))
  printf '\n[%d:%02d] %s\n' $((s / 60)) $((s % 60)) "$*" >&2
}

hf_install() {
  if [[ ${HOLDFAST_NO_INSTALL:-0} == 1 ]]; then return; fi
  if ! command -v dpkg-query >/dev/null; then
    echo "not a Debian system: install the packages yourself, then set HOLDFAST_NO_INSTALL=1:" >&2
    echo "  ${HF_PACKAGES[*]}" >&2
    exit 1
  fi
  local missing=() p
  for p in "${HF_PACKAGES[@]}"; do
    case $p in
      # Any Node, and any Rust that is new enough, will do.
      nodejs) command -v node >/dev/null && continue ;;
      npm) command -v npm >/dev/null && continue ;;
      cargo-web | rustc-web)
        if hf_has_rust; then continue; else missing+=("$p") && continue; fi ;;
    esac
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
  done
  if [[ ${#missing[@]} -eq 0 ]]; then return; fi
  hf_step "installing ${#missing[@]} Debian packages: ${missing[*]}"
  local sudo=() apt
  if [[ $(id -u) -ne 0 ]]; then sudo=(sudo); fi
  apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq)
  # Rust new enough is in Debian's security suite, which every installed system has in its sources. One
  # made by debootstrap does not: then the suite is asked beside them, for this install alone.
  if ! grep -rqs -- '-security' /etc/apt/sources.list /etc/apt/sources.list.d; then
    local parts uri
    parts=$(mktemp -d)
    chmod 755 "$parts"
    cp -r /etc/apt/sources.list.d/. "$parts"
    uri=$(grep -rhsoE -m1 'https?://[^ ]+/debian/?' /etc/apt/sources.list /etc/apt/sources.list.d |
      head -1)
    echo "deb ${uri%/}-security bookworm-security main" >"$parts/security.list"
    apt+=(-o "Dir::Etc::sourceparts=$parts")
  fi
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# engine/text needs Rust 1.87.
hf_has_rust() {
  command -v cargo >/dev/null && command -v rustc >/dev/null &&
    printf '1.87\n%s\n' "$(rustc --version | cut -d' ' -f2)" | sort -V -C
}

hf_build() {
  local preset=$1
  hf_step "building ($preset)"
  cmake --preset "$preset" -S "$HF_ROOT" >"$HF_ROOT/.configure.log" 2>&1 || {
    cat "$HF_ROOT/.configure.log" >&2
    exit 1
  }
  rm -f "$HF_ROOT/.configure.log"
  cmake --build --preset "$preset" "${@:2}" >&2
}

hf_venv() {
  local venv=$HF_ROOT/build/venv stamp
  stamp=$venv/.packages
  if [[ -f $stamp && $(cat "$stamp") == "$*" ]]; then return; fi
  hf_step "Python packages: $*"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check "$@" >&2
  echo "$*" >"$stamp"
}
