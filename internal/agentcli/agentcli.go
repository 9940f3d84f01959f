// Package agentcli describes the command line of brevet-agent once. The agent parses its arguments, prints its help and
// completes command lines from this description. Its manual is generated from it as well.
package agentcli

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Short is the one-line description of the agent.
const Short = "Gets this machine its certificate, and keeps it fresh"

// A Flag takes one value.
type Flag struct {
	Name    string
	Value   string // placeholder of the value, such as FILE or DIR, or the allowed values, such as text|json
	Default string
	Usage   string
}

// A Command is one subcommand of the agent.
type Command struct {
	Name    string
	Short   string
	Long    string // further text for the manual
	Example string // command lines, each indented by two spaces
	Flags   []Flag
}

// Commands returns all subcommands of the agent.
func Commands() []Command {
	config := Flag{Name: "config", Value: "FILE", Usage: "path of the configuration file"}
	directory := Flag{Name: "directory", Value: "DIR", Usage: "directory of the credential, in place of state_dir in the configuration"}
	token := Flag{Name: "token-file", Value: "FILE", Usage: "enrollment token; enroll reads it from standard input with -"}
	identity := Flag{Name: "identity", Value: "NAME", Usage: "identity of this machine, such as sensor/S000017; a token for a pattern of identities needs it"}
	output := Flag{Name: "output", Value: "text|json", Default: "text", Usage: "form of what is shown"}
	return []Command{
		{
			Name: "run", Short: "get a certificate, and renew it until stopped", Flags: []Flag{config, directory, token},
			Long: "Where there is no valid certificate, it enrolls with what the configuration names: an enrollment token, a\n" +
				"factory certificate, the TPM, a JWT, or two of these. It renews at about two thirds of each certificate's\n" +
				"life, and ends with SIGTERM or SIGINT. The service brevet-agent runs it.",
			Example: "  brevet-agent run --config /etc/brevet-agent/agent.yaml",
		},
		{
			Name: "enroll", Short: "get the first certificate, and end", Flags: []Flag{config, directory, token, identity},
			Long: "The token comes from --token-file, or from the file that the configuration names. Without a token, the other\n" +
				"evidence in the configuration must be enough. If there is a valid certificate, only a new token is used.",
			Example: "  brevet-agent enroll --directory device1 --token-file device1.token",
		},
		{
			Name: "status", Short: "show what this machine holds, and what comes next", Flags: []Flag{config, directory, output},
			Long: "It exits with 0 if the certificate is valid and the agent renews it, or still has time to try again. It exits\n" +
				"with 1 if a person has to see to something, and then says what: the state is reload_failed, refused, overdue,\n" +
				"expired, damaged, unreadable or not_enrolled. With --output json it prints an object in every state.",
			Example: "  brevet-agent status --config /etc/brevet-agent/agent.yaml --output json",
		},
		{
			Name: "doctor", Short: "check what enrolling needs", Flags: []Flag{config, directory, output},
			Long: "It reads the evidence that the configuration names, checks that keys match and nothing has expired, and connects\n" +
				"to the server. It changes nothing and sends no evidence. It exits with 1 if it finds a fault.",
			Example: "  brevet-agent doctor --config /etc/brevet-agent/agent.yaml",
		},
		{
			Name: "evidence", Short: "show which TPM this machine enrolls with", Flags: []Flag{config, directory},
			Long: "It prints tpm: and the SHA-256 of the endorsement key, for brevet identity create --evidence. The TPM is that of\n" +
				"key.tpm in the configuration. It may take a minute, because the TPM makes the key from its seed.",
			Example: "  brevet-agent evidence --config /etc/brevet-agent/agent.yaml",
		},
		{Name: "version", Short: "show the version"},
		{Name: "help", Short: "explain the commands"},
	}
}

// Find returns the command with a name.
func Find(name string) (Command, bool) {
	for _, c := range Commands() {
		if c.Name == name {
			return c, true
		}
	}
	return Command{}, false
}

// FlagSet returns a new flag set with the flags of the command.
func (c Command) FlagSet() *flag.FlagSet {
	set := flag.NewFlagSet(c.Name, flag.ContinueOnError)
	for _, f := range c.Flags {
		set.String(f.Name, f.Default, f.Usage)
	}
	return set
}

// Names returns the names of all commands as a list in a sentence: "run, enroll, status, doctor, evidence, version or
// help".
func Names() string {
	var names []string
	for _, c := range Commands() {
		names = append(names, c.Name)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Help writes the agent's help.
func Help(w io.Writer) {
	fmt.Fprint(w, "usage: brevet-agent <command> [flags]\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var flags []Flag
	known := map[string]bool{}
	for _, c := range Commands() {
		var takes []string
		for _, f := range c.Flags {
			takes = append(takes, "--"+f.Name)
			if !known[f.Name] {
				known[f.Name] = true
				flags = append(flags, f)
			}
		}
		line := []string{"  " + c.Name, c.Short, strings.Join(takes, " ")}
		fmt.Fprintln(t, strings.TrimSuffix(strings.Join(line, "\t"), "\t"))
	}
	fmt.Fprintln(t)
	for _, f := range flags {
		fmt.Fprintf(t, "  --%s %s\t%s\n", f.Name, f.Value, f.Usage)
	}
	t.Flush()
}
