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

# debian_mirror: the address this machine gets Debian from. Empty if it has none.
debian_mirror() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # indextargets reads both forms of apt's sources.
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$codename" '$1 == suite && $2 == "main" && !found { print $3; found = 1 }'
}

# private_apt FOLDER SUITE...: gives apt a state of its own under FOLDER, with these suites of the machine's mirror, and
# puts the options that select it into the array 'private'. False: the mirror lacks one of the suites.
private_apt() {
    local folder=$1 suite uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    shift
    private=(
        -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache"
        -o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::Etc::Preferences=$folder/preferences" -o Dir::Etc::PreferencesParts=/dev/null
        -o APT::Sandbox::User=root -o Acquire::Languages=none
    )
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    uri=$(debian_mirror)
    [ -n "$uri" ] || return 1
    [ -e "$keyring" ] && keyring="[signed-by=$keyring]" || keyring=
    for suite; do
        echo "deb $keyring $uri $suite main"
    done >"$folder/sources.list"
    # A suite that is missing is an error here, not a warning.
    apt-get "${private[@]}" -o APT::Update::Error-Mode=any -qq update >/dev/null 2>&1
}
