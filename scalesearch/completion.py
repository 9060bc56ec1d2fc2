"""Tab: candidates for the word under the cursor, and the shell snippets that ask for them.

A snippet passes the words up to the cursor to the hidden `scalesearch --complete WORD ... CURRENT`
and offers the lines that come back. They serve the console script and `python -m scalesearch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scalesearch.errors import ConfigError, unknown
from scalesearch.manual import EXPERIMENT, Manual, preset_names, read_manual

# Settings whose value is a network: presets are offered, files come from the shell.
NETWORKS = ("architecture", "base", "skeleton")


def candidates(words: Sequence[str], commands: Iterable[str]) -> list[str]:
    """Whole words that can stand where the last of `words` is being typed; none: the shell offers files.

    >>> candidates(["na"], ["nas", "grid"])
    ['nas']
    """
    current = words[-1] if words else ""
    if len(words) < 2:
        found = [*commands, "completion", "--help", "--version"]
    elif words[0] == "completion":
        found = sorted(SCRIPTS)
    elif words[0] not in commands:
        found = []
    elif words[-2] in ("--cfg", "-c"):
        found = ["job"]
    else:
        manual = read_manual(words[0])
        pairs = [(key, value) for key, equals, value in (word.partition("=") for word in words[1:-1]) if equals]
        key, equals, _ = current.partition("=")
        values = [f"{key}={value}" for value in _values(key, manual, pairs)]
        found = values if equals else [*_keys(manual, pairs), "--help", "--cfg"]
    return [word for word in found if word.startswith(current) and not (word.startswith("-") and not current)]


def _keys(manual: Manual, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Settings and groups that are not set yet, and the settings of the options chosen so far."""
    chosen = dict(pairs)
    keys = [key for key in manual.keys if key not in chosen]
    for group in manual.groups:
        option = chosen.get(group.name, group.default)
        if option in group.files:
            keys += [s.key for s in group.option(option).settings if s.key not in chosen]
    return [f"{key}=" for key in keys]


def _values(key: str, manual: Manual, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Options of a group, experiments, presets, or the choices that a setting's comment names."""
    group = manual.group(key)
    if group is not None:
        return sorted([*group.files, *group.plugins, *(["null"] if group.default is None else [])])
    if key == EXPERIMENT:
        return [name for name, _ in manual.experiments]
    if key.rpartition(".")[2] in NETWORKS:
        return preset_names()
    setting = manual.setting(key, pairs)
    if setting is not None and setting.default in ("true", "false"):
        return ["true", "false"]
    return setting.choices if setting is not None else []


def script(words: Sequence[str]) -> str:
    """The snippet of a shell; ConfigError for a shell that has none."""
    if not words:
        raise ConfigError(f"completion: name the shell: completion {' | '.join(sorted(SCRIPTS))}")
    if words[0] not in SCRIPTS:
        raise ConfigError(unknown("completion for shell", words[0], SCRIPTS))
    return SCRIPTS[words[0]].strip()


# bash cuts words at = and :, so candidates lose what stands before the last cut of the word typed.
BASH = r"""
# eval "$(scalesearch completion bash)", or "$(python -m scalesearch completion bash)"
_scalesearch_offer() {
    # $1: how many words of the line start the program; the rest of the arguments start it
    local skip=$1 line="${COMP_LINE:0:COMP_POINT}" current cut word
    shift
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    cut="${current%"${current##*[$COMP_WORDBREAKS]}"}"
    COMPREPLY=()
    while IFS= read -r word; do
        [[ -z $word ]] && continue
        [[ $word == *= ]] || word+=" "
        COMPREPLY+=("${word#"$cut"}")
    done < <("$@" --complete "${words[@]:skip}" 2>/dev/null)
}
_scalesearch() { _scalesearch_offer 1 "${COMP_WORDS[0]/#\~/$HOME}"; }
_scalesearch_python() {
    COMPREPLY=()
    [[ ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} == scalesearch && COMP_CWORD -gt 2 ]] || return
    _scalesearch_offer 3 "${COMP_WORDS[0]/#\~/$HOME}" -m scalesearch
}
complete -o nospace -o bashdefault -o default -F _scalesearch scalesearch
complete -o nospace -o bashdefault -o default -F _scalesearch_python python python3
"""

ZSH = r"""
# eval "$(scalesearch completion zsh)", after compinit
_scalesearch_offer() {
    local skip=$1 word; shift
    local -a found open closed
    found=(${(f)"$("$@" --complete "${(@)words[skip + 1,CURRENT]}" 2>/dev/null)"})
    for word in $found; do [[ $word == *= ]] && open+=("$word") || closed+=("$word"); done
    (( $#open )) && compadd -Q -S '' -- $open
    (( $#closed )) && compadd -Q -- $closed
    if (( ! $#found )); then compset -P '*='; _files; fi
}
_scalesearch() { _scalesearch_offer 1 ${~words[1]}; }
_scalesearch_python() {
    if [[ $words[2] == -m && $words[3] == scalesearch && $CURRENT -gt 3 ]]; then
        _scalesearch_offer 3 ${~words[1]} -m scalesearch
    elif (( $+functions[_python] )) || autoload -Uz +X _python 2>/dev/null; then
        _python
    else
        _default
    fi
}
compdef _scalesearch scalesearch
compdef _scalesearch_python python python3
"""

FISH = r"""
# scalesearch completion fish | source
function __scalesearch_offer
    set -l words (commandline -opc) (commandline -ct)
    set -l skip $argv[1]
    set -l found ($argv[2..-1] --complete $words[(math $skip + 1)..-1] 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        set -l token (commandline -ct)
        set -l key (string match -r '^[^=]*=' -- $token)
        printf "$key%s\n" (__fish_complete_path (string replace -r '^[^=]*=' '' -- $token))
    end
end
function __scalesearch_is_module
    set -l words (commandline -opc)
    test (count $words) -ge 3; and test "$words[2]" = -m; and test "$words[3]" = scalesearch
end
complete -c scalesearch -f -a '(__scalesearch_offer 1 (commandline -opc)[1])'
for python in python python3
    complete -c $python -f -n __scalesearch_is_module -a '(__scalesearch_offer 3 (commandline -opc)[1] -m scalesearch)'
end
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
