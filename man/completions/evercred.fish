# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_evercred_global_optspecs
    string join \n h/help V/version
end

function __fish_evercred_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_evercred_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_evercred_using_subcommand
    set -l cmd (__fish_evercred_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c evercred -n "__fish_evercred_needs_command" -s h -l help -d 'Print help'
complete -c evercred -n "__fish_evercred_needs_command" -s V -l version -d 'Print version'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "status" -d 'Show how credentials stand: state, time left, what is wrong and what to do'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "login" -d 'Approve a credential for your jobs, as a submit would ask for it'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "upload" -d 'Store a token that a portal has: one line on standard input'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "import" -d 'Take credentials over from another credential monitor (root)'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "check" -d 'Check the configuration and tell every problem in it'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "doctor" -d 'Probe the live installation: directory, daemon, HTCondor, tokens, sites, issuers'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "renew" -d 'Renew a credential now, also one that is parked (root)'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "revoke" -d 'Give a credential\'s refresh token back to its issuer, now (root)'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "needs-renewal" -d 'Tell whether a person must approve again, by exit code'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "list" -d 'List credentials, those that end first at the top'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "replicate" -d 'Show what remote sites have, or send it to them now'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "keygen" -d 'Make a key for sealing what is replicated'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "receive" -d 'Receive sealed tokens: the far end of replication, also as a forced command of ssh'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "explain" -d 'Explain an error kind or a hold reason, with the next command'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "demo" -d 'Watch tokens being renewed: needs no root, no HTCondor and no network'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "credmon" -d 'The credential monitor, as `condor_credmon_evercred`'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "generate" -d 'Man pages, completions and reference pages, for the packages'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "issuer" -d 'The embedded issuer of demo and tests'
complete -c evercred -n "__fish_evercred_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c evercred -n "__fish_evercred_using_subcommand status" -l socket -d 'The daemon\'s status socket, instead of the configured one' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand status" -l json -d 'One JSON object, for scripts'
complete -c evercred -n "__fish_evercred_using_subcommand status" -l watch -d 'Show it anew every 2 seconds'
complete -c evercred -n "__fish_evercred_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand login" -l scopes -d 'Scopes, as the submit file has them; its commas and blanks count' -r
complete -c evercred -n "__fish_evercred_using_subcommand login" -l audience -d 'Audience, as the submit file has it' -r
complete -c evercred -n "__fish_evercred_using_subcommand login" -l config -d 'Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand login" -l renew -d 'Make a new credential, even if there is a valid one'
complete -c evercred -n "__fish_evercred_using_subcommand login" -l plain -d 'Plain lines: no drawing, no QR code; for screen readers'
complete -c evercred -n "__fish_evercred_using_subcommand login" -l browser -d 'Open the page in a browser, where one is local and the page\'s address is no secret'
complete -c evercred -n "__fish_evercred_using_subcommand login" -l json -d 'One JSON object a line, for portals; needs no terminal'
complete -c evercred -n "__fish_evercred_using_subcommand login" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand upload" -l config -d 'Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand upload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand import; and not __fish_seen_subcommand_from kit stock help" -s h -l help -d 'Print help'
complete -c evercred -n "__fish_evercred_using_subcommand import; and not __fish_seen_subcommand_from kit stock help" -f -a "kit" -d 'From the KIT credential monitor (condor-credmon-mytoken): its Fernet-sealed .top files'
complete -c evercred -n "__fish_evercred_using_subcommand import; and not __fish_seen_subcommand_from kit stock help" -f -a "stock" -d 'From HTCondor\'s own OAuth credmon: its services become providers, its users\' files serve as they are'
complete -c evercred -n "__fish_evercred_using_subcommand import; and not __fish_seen_subcommand_from kit stock help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from kit" -l key -d 'Its Fernet key (`SEC_ENCRYPTION_KEY_DIRECTORY`, which is a file)' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from kit" -l dir -d 'Its credential directory' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from kit" -l config -d 'Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from kit" -l apply -d 'Store what can be taken; without it, only tell'
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from kit" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from stock" -l write -d 'Write the providers to this new file, like /etc/evercred/conf.d/stock.toml; without it, only tell' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from stock" -l dir -d 'The credential directory, instead of HTCondor\'s `SEC_CREDENTIAL_DIRECTORY_OAUTH`' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from stock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from help" -f -a "kit" -d 'From the KIT credential monitor (condor-credmon-mytoken): its Fernet-sealed .top files'
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from help" -f -a "stock" -d 'From HTCondor\'s own OAuth credmon: its services become providers, its users\' files serve as they are'
complete -c evercred -n "__fish_evercred_using_subcommand import; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c evercred -n "__fish_evercred_using_subcommand check" -l config -d 'Check this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand doctor" -l config -d 'Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand doctor" -l json -d 'One JSON object, for scripts'
complete -c evercred -n "__fish_evercred_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand renew" -l wait -d 'How long to wait for it' -r
complete -c evercred -n "__fish_evercred_using_subcommand renew" -l socket -d 'The daemon\'s status socket, instead of the configured one' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand renew" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand revoke" -l socket -d 'The daemon\'s status socket, instead of the configured one' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand revoke" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand needs-renewal" -l min -d 'How long the refresh token must still live' -r
complete -c evercred -n "__fish_evercred_using_subcommand needs-renewal" -l socket -d 'The daemon\'s status socket, instead of the configured one' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand needs-renewal" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand list" -l expiring -d 'Only those whose refresh token ends within this time (like 7d), or has ended or was refused' -r
complete -c evercred -n "__fish_evercred_using_subcommand list" -l socket -d 'The daemon\'s status socket, instead of the configured one' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand list" -l json -d 'One JSON object, for scripts'
complete -c evercred -n "__fish_evercred_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand replicate" -l site -d 'One site; all without it' -r
complete -c evercred -n "__fish_evercred_using_subcommand replicate" -l wait -d 'How long to wait for the sites' -r
complete -c evercred -n "__fish_evercred_using_subcommand replicate" -l socket -d 'The daemon\'s status socket, instead of the configured one' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand replicate" -l now -d 'Send it now, also what was confirmed'
complete -c evercred -n "__fish_evercred_using_subcommand replicate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand keygen" -s h -l help -d 'Print help'
complete -c evercred -n "__fish_evercred_using_subcommand receive" -l directory -d 'Files may appear below this directory and nowhere else' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand receive" -l key-file -d 'A key, and during a rotation a second one; the first one confirms' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand receive" -l inbox -d 'Instead of standard input: every NAME.sealed in this directory; what became of it is NAME.receipt' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand receive" -l site -d 'Accept only what is for the site of this name at the sender' -r
complete -c evercred -n "__fish_evercred_using_subcommand receive" -l max-age -d 'Accept nothing older, whatever the sender allows' -r
complete -c evercred -n "__fish_evercred_using_subcommand receive" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand explain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand demo" -l for -d 'How long it runs: seconds, or like 30s or 2m' -r
complete -c evercred -n "__fish_evercred_using_subcommand demo" -l plain -d 'Plain lines, as in a pipe'
complete -c evercred -n "__fish_evercred_using_subcommand demo" -l yes -d 'Approve the request that the tour shows, instead of in a browser'
complete -c evercred -n "__fish_evercred_using_subcommand demo" -s h -l help -d 'Print help'
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l config -d 'Read this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l cred-dir -d 'The credential directory, instead of the configured one' -r -F
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l log -d 'Where to log: a file, syslog, journal or stderr' -r
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l confirm-after -d 'Two refusals this far apart park a credential; the demo and tests have no minute' -r
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l once -d 'Renew what is due, then exit'
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l foreground -d 'Stay in the foreground and log to standard error, unless --log says otherwise'
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l courier -d 'Be the network process; the keeper starts it so'
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -l replicator -d 'Be the process that replicates; the keeper starts it so'
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c evercred -n "__fish_evercred_using_subcommand credmon" -s V -l version -d 'Print version'
complete -c evercred -n "__fish_evercred_using_subcommand generate" -s h -l help -d 'Print help'
complete -c evercred -n "__fish_evercred_using_subcommand issuer" -s h -l help -d 'Print help'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "status" -d 'Show how credentials stand: state, time left, what is wrong and what to do'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "login" -d 'Approve a credential for your jobs, as a submit would ask for it'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "upload" -d 'Store a token that a portal has: one line on standard input'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "import" -d 'Take credentials over from another credential monitor (root)'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "check" -d 'Check the configuration and tell every problem in it'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "doctor" -d 'Probe the live installation: directory, daemon, HTCondor, tokens, sites, issuers'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "renew" -d 'Renew a credential now, also one that is parked (root)'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "revoke" -d 'Give a credential\'s refresh token back to its issuer, now (root)'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "needs-renewal" -d 'Tell whether a person must approve again, by exit code'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "list" -d 'List credentials, those that end first at the top'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "replicate" -d 'Show what remote sites have, or send it to them now'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "keygen" -d 'Make a key for sealing what is replicated'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "receive" -d 'Receive sealed tokens: the far end of replication, also as a forced command of ssh'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "explain" -d 'Explain an error kind or a hold reason, with the next command'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "demo" -d 'Watch tokens being renewed: needs no root, no HTCondor and no network'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "credmon" -d 'The credential monitor, as `condor_credmon_evercred`'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "generate" -d 'Man pages, completions and reference pages, for the packages'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "issuer" -d 'The embedded issuer of demo and tests'
complete -c evercred -n "__fish_evercred_using_subcommand help; and not __fish_seen_subcommand_from status login upload import check doctor renew revoke needs-renewal list replicate keygen receive explain demo credmon generate issuer help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c evercred -n "__fish_evercred_using_subcommand help; and __fish_seen_subcommand_from import" -f -a "kit" -d 'From the KIT credential monitor (condor-credmon-mytoken): its Fernet-sealed .top files'
complete -c evercred -n "__fish_evercred_using_subcommand help; and __fish_seen_subcommand_from import" -f -a "stock" -d 'From HTCondor\'s own OAuth credmon: its services become providers, its users\' files serve as they are'
