# shellcheck shell=bash
# Emulation of the other processor, so that its programs run in containers.

BINFMT=/proc/sys/fs/binfmt_misc

emulation_todo() {
    grep -qs '^flags:.*F' "$BINFMT/qemu-$OTHER_MACHINE" || say "register QEMU with the kernel for $OTHER_MACHINE programs"
}

# The flag F keeps the interpreter open, so that it is found inside containers too.
emulation_do() {
    local entry="$BINFMT/qemu-$OTHER_MACHINE"
    [ -e $BINFMT/register ] || as_root mount -t binfmt_misc none $BINFMT ||
        die "the kernel offers no binfmt_misc, so $OTHER_MACHINE cannot be emulated" "modprobe binfmt_misc"
    # It may have been there unmounted.
    [ -n "$(emulation_todo)" ] || return 0
    doing "register QEMU for $OTHER_MACHINE programs"
    [ ! -e "$entry" ] || echo -1 | as_root tee "$entry" >/dev/null
    printf '%s' ":qemu-$OTHER_MACHINE:M::$(elf_magic):$(find_qemu "$OTHER_MACHINE"):OCF" |
        as_root tee $BINFMT/register >/dev/null
}

emulation_report() { ok "$OTHER_MACHINE is emulated"; }

# find_qemu MACHINE
find_qemu() { command -v "qemu-$1-static" || command -v "qemu-$1"; }

# The header of a 64-bit little-endian ELF program for that machine, and its mask.
elf_magic() {
    local any='\x00\x00\x00\x00\x00\x00\x00\x00' machine='\xb7'
    [ "$OTHER_MACHINE" != x86_64 ] || machine='\x3e'
    printf '%s:%s' "\\x7fELF\\x02\\x01\\x01\\x00$any\\x02\\x00$machine\\x00" \
        '\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
}
