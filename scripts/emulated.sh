# Sourced by the scripts that boot an emulated machine, after common.sh: QEMU and its kernel, the guest's first files, and the
# machine itself. Not a command.
#
# A QEMU and a newer Debian kernel are downloaded as packages and unpacked under target/emulated/ (140 MB), never
# installed; delete that folder to fetch newer ones.

emulated=$project/target/emulated
root=$emulated/root

skip() {
    echo "SKIP $script: $*"
    exit 0
}

folder=$(mktemp -d)
machine=
clean_up() {
    if [ -n "$machine" ]; then
        # Waited for, or the shell would report its death.
        { kill -9 "$machine" && wait "$machine"; } 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# The packages that this machine would install for PACKAGE..., one a line.
wanted() {
    apt-get "${private[@]}" -s --no-install-recommends -t bookworm-backports install "$@" 2>/dev/null |
        awk '/^Inst/ { print $2 }' || true
}

# download FOLDER PACKAGE...: unpacks packages into FOLDER.
download() {
    local into=$1 package
    shift
    mkdir "$folder/download"
    (cd "$folder/download" && apt-get "${private[@]}" -qq -t bookworm-backports download "$@") >/dev/null 2>&1 ||
        skip "cannot download $*"
    for package in "$folder/download/"*.deb; do
        dpkg -x "$package" "$into"
    done
    rm -r "$folder/download"
}

# QEMU 10 and Linux 7: igb has zero-copy since Linux 6.14, and an older QEMU has no igb.
fetch() {
    local qemu release
    command -v apt-get >/dev/null || skip "this machine has no apt-get"
    [ "$(uname -m)" = x86_64 ] || skip "it emulates a PC, and this machine's packages are for $(uname -m)"
    echo "fetching QEMU and a kernel (140 MB)"
    rm -rf "$root"
    mkdir -p "$emulated/apt"
    # Nothing but the kernel is to come from the newer Debian.
    printf 'Package: *\nPin: release n=trixie-backports\nPin-Priority: 1\n' >"$emulated/apt/preferences"
    private_apt "$emulated/apt" bookworm bookworm-backports trixie-backports ||
        skip "this machine's Debian mirror lacks bookworm-backports or trixie-backports"
    release=$(apt-cache "${private[@]}" depends linux-image-amd64/trixie-backports 2>/dev/null |
        sed -n 's/^ *Depends: linux-image-//p' || true)
    case $release in
        [0-6].*|'') skip "trixie-backports has no Linux 7 (but: ${release:-none})" ;;
    esac
    qemu=$(wanted qemu-system-x86)
    [ -n "$qemu" ] || skip "bookworm-backports has no qemu-system-x86 that fits this machine"
    # shellcheck disable=SC2086 # a list
    download "$root" $qemu busybox-static/bookworm
    download "$root" "linux-binary-$release/trixie-backports" "linux-modules-$release/trixie-backports"
    touch "$emulated/complete"
}

# add_module NAME: adds the kernel module after those it needs.
add_module() {
    local file needed
    file=$(find "$root/usr/lib/modules" -name "$1.ko.xz")
    # It may be built in.
    [ -n "$file" ] || return 0
    ! grep -qx "$1" "$guest/modules/order" 2>/dev/null || return 0
    xz -dc "$file" >"$guest/modules/$1.ko"
    for needed in $(tr '\0' '\n' <"$guest/modules/$1.ko" | sed -n 's/^depends=//p' | tr , ' '); do
        add_module "$needed"
    done
    echo "$1" >>"$guest/modules/order"
}

# begin_guest: an empty guest in $guest, but for busybox's programs.
begin_guest() {
    local busybox=$root/bin/busybox program
    guest=$folder/guest
    rm -rf "$guest"
    mkdir -p "$guest"/{proc,sys,dev,run,tmp,etc,modules,bin,usr/local/bin}
    cp "$busybox" "$guest/bin/busybox"
    for program in $("$busybox" --list); do
        [ "$program" = busybox ] || ln -s busybox "$guest/bin/$program"
    done
}

# finish_guest: the guest's files, all in memory, as one archive.
finish_guest() {
    (cd "$guest" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$folder/initramfs"
}

# start_machine NAME OPTION...: starts the guest, with these options of QEMU and its monitor at standard input, in the
# background. It writes its console to target/emulated/NAME.console, and what it tells to NAME.results.
start_machine() {
    local libraries name=$1
    shift
    libraries=$(find "$root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd :)
    : >"$emulated/$name.results"
    # q35 has the PCI Express that igb wants.
    LD_LIBRARY_PATH=$libraries "$root/usr/bin/qemu-system-x86_64" \
        -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu" \
        -machine q35 -cpu max -smp 2 -no-reboot -nodefaults -display none \
        -kernel "$(find "$root/usr/lib/modules" -name vmlinuz)" -initrd "$folder/initramfs" \
        -append "console=ttyS0 panic=-1 rdinit=/init quiet" \
        -serial "file:$emulated/$name.console" -serial "file:$emulated/$name.results" -monitor stdio \
        "$@" <&0 >"$emulated/$name.qemu" 2>&1 &
    machine=$!
}

# wait_for_machine NAME SECONDS [COMMAND...]: runs the command every second until the guest has powered itself off, or its
# time is up.
wait_for_machine() {
    local name=$1 seconds=$2 deadline=$((SECONDS + $2))
    shift 2
    while kill -0 "$machine" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do
        "$@"
        sleep 1
    done
    if [ "$SECONDS" -ge "$deadline" ] && kill -9 "$machine" 2>/dev/null; then
        echo "the $name machine was stopped after $seconds s"
    fi
    # Not the server's fault, but nothing was shown either.
    wait "$machine" 2>/dev/null || echo "QEMU itself failed with status $?: target/emulated/$name.qemu"
    machine=
}
