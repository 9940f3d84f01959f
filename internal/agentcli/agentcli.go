// Package agentcli is the one description of brevet-agent's command line. The agent parses, explains and completes by
// it, and its manual is made from it, so none of these can say what another does not.
package agentcli

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Short says what the agent is.
const Short = "Gets this machine its certificate, and keeps it fresh"

// A Flag takes one value.
type Flag struct {
	Name    string
	Value   string // what it takes: FILE or DIR, or else its choices, such as text|json
	Default string
	Usage   string
}

// A Command is one thing that the agent does.
type Command struct {
	Name    string
	Short   string
	Long    string // for the manual, beyond Short
	Example string // command lines, each behind two spaces
	Flags   []Flag
}

// Commands lists what the agent does.
func Commands() []Command {
	config := Flag{Name: "config", Value: "FILE", Usage: "path of the configuration file"}
	directory := Flag{Name: "directory", Value: "DIR", Usage: "directory of the credential, in place of state_dir in the configuration"}
	token := Flag{Name: "token-file", Value: "FILE", Usage: "enrollment token; enroll reads it from standard input with -"}
	output := Flag{Name: "output", Value: "text|json", Default: "text", Usage: "form of what is shown"}
	return []Command{
		{
			Name: "run", Short: "get a certificate, and renew it until stopped", Flags: []Flag{config, directory, token},
			Long: "It spends the enrollment token where there is no valid certificate, renews at about two thirds of each\n" +
				"certificate's life, and ends with SIGTERM or SIGINT. The service brevet-agent runs it.",
			Example: "  brevet-agent run --config /etc/brevet-agent/agent.yaml",
		},
		{
			Name: "enroll", Short: "spend an enrollment token, and end", Flags: []Flag{config, directory, token},
			Long:    "The token comes from --token-file, or from the file that the configuration names.",
			Example: "  brevet-agent enroll --directory device1 --token-file device1.token",
		},
		{
			Name: "status", Short: "show what this machine holds, and what comes next", Flags: []Flag{config, directory, output},
			Long: "It exits with 0 if the certificate is valid and the agent renews it, or still has time to try again. It exits\n" +
				"with 1 if a person has to see to something, and then says what: the state is reload_failed, refused, overdue,\n" +
				"expired, damaged, unreadable or not_enrolled. With --output json it prints an object in every state.",
			Example: "  brevet-agent status --config /etc/brevet-agent/agent.yaml --output json",
		},
		{Name: "version", Short: "show the version"},
		{Name: "help", Short: "explain the commands"},
	}
}

// Find returns a command by its name.
func Find(name string) (Command, bool) {
	for _, c := range Commands() {
		if c.Name == name {
			return c, true
		}
	}
	return Command{}, false
}

// FlagSet returns the flags of a command, to parse with.
func (c Command) FlagSet() *flag.FlagSet {
	set := flag.NewFlagSet(c.Name, flag.ContinueOnError)
	for _, f := range c.Flags {
		set.String(f.Name, f.Default, f.Usage)
	}
	return set
}

// Names are the commands' names as a sentence says them: "run, enroll, status, version or help".
func Names() string {
	var names []string
	for _, c := range Commands() {
		names = append(names, c.Name)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Help writes what the agent's help shows.
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
