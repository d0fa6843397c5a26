# Packages of Debian's releases, whatever is installed here; to be sourced, with `folder` set, and
# `architecture` where it is another than this machine's.

# use_debian TYPE SUITE...: such as use_debian "deb sid" "deb-src trixie".
use_debian() {
    local key=/usr/share/keyrings/debian-archive-keyring.gpg line
    [ -r "$key" ] || return 1
    mkdir -p "$folder"/apt/{lists,cache/archives}/partial
    for line in "$@"; do
        echo "${line%% *} [signed-by=$key] http://deb.debian.org/debian ${line#* } main"
    done >"$folder/apt/sources.list"
    apt get update
}

# An empty status file: nothing is installed.
apt() {
    local command=$1
    shift
    "apt-$command" -qq ${architecture:+-o "APT::Architecture=$architecture"} \
        ${architecture:+-o "APT::Architectures=$architecture"} \
        -o Dir::Etc::sourcelist="$folder/apt/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o Dir::State::Lists="$folder/apt/lists" \
        -o Dir::State::status=/dev/null -o Dir::Cache="$folder/apt/cache" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
}
