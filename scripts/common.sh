# Sourced by the scripts beside it: where the project is, how they speak, and whose cargo they use. Not a command.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=$(basename "$0")
# ip, tc and ethtool live where not every root shell looks.
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "$script: $*" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" = 0 ] || fail "needs root for network namespaces and XDP: try 'sudo scripts/$script'"
}

# The user who typed sudo, or whoever runs us.
invoking_user=${SUDO_USER:-$(id -un)}

# Runs a command as the user who typed sudo, so that a build leaves no root-owned file in their checkout.
as_invoking_user() {
    if [ "$invoking_user" = "$(id -un)" ]; then
        "$@"
    else
        local home
        home=$(getent passwd "$invoking_user" | cut -d: -f6)
        runuser -u "$invoking_user" -- env HOME="$home" PATH="$PATH" "$@"
    fi
}

# Puts cargo into PATH. sudo resets PATH and HOME, so a rustup of the invoking user has to be looked for.
find_cargo() {
    local home
    home=$(getent passwd "$invoking_user" | cut -d: -f6)
    if ! command -v cargo >/dev/null && [ -x "$home/.cargo/bin/cargo" ]; then
        PATH=$home/.cargo/bin:$PATH
    fi
    command -v cargo >/dev/null ||
        fail "cargo is missing: install Rust (rustup) as $invoking_user, then run this again"
    # Under sudo, root's HOME has no toolchain for rustup's cargo to choose.
    if [ "$invoking_user" != root ]; then
        [ ! -d "$home/.rustup" ] || export RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
        [ ! -d "$home/.cargo" ] || export CARGO_HOME="${CARGO_HOME:-$home/.cargo}"
    fi
}
