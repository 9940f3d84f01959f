package agentcli

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// CompleteCommand is the hidden command that cobra's completion scripts call. Its arguments are the words of a command
// line. The last word is unfinished.
const CompleteCommand = "__complete"

// Directives for cobra's completion scripts: bits that tell the shell whether to add file names to the suggestions.
const (
	completeFiles       = 0  // suggest files if there are no other suggestions
	completeNothing     = 4  // suggest no files
	completeDirectories = 16 // suggest directories
)

// Complete writes the possible completions of the last word, in the format of cobra's scripts: a line for each
// completion, with a tab before its description, and then the directive.
func Complete(w io.Writer, words []string) {
	offers, directive := complete(words)
	for _, o := range offers {
		fmt.Fprintln(w, o)
	}
	fmt.Fprintf(w, ":%d\n", directive)
}

func complete(words []string) (offers []string, directive int) {
	if len(words) == 0 {
		return nil, completeNothing
	}
	done, last := words[:len(words)-1], words[len(words)-1]
	if len(done) == 0 {
		for _, c := range Commands() {
			offers = offer(offers, last, c.Name, c.Short)
		}
		return offers, completeNothing
	}
	c, _ := Find(done[0])
	if name, value, given := strings.Cut(last, "="); given {
		return c.completeValue(name, value)
	}
	if before := done[len(done)-1]; strings.HasPrefix(before, "-") && !strings.Contains(before, "=") {
		return c.completeValue(before, last)
	}
	for _, f := range c.Flags {
		if !slices.ContainsFunc(done, f.is) {
			offers = offer(offers, last, "--"+f.Name, f.Usage)
		}
	}
	return offers, completeNothing
}

func (c Command) completeValue(name, value string) (offers []string, directive int) {
	i := slices.IndexFunc(c.Flags, func(f Flag) bool { return f.is(name) })
	if i < 0 {
		return nil, completeNothing
	}
	switch f := c.Flags[i]; f.Value {
	case "FILE":
		return nil, completeFiles
	case "DIR":
		return nil, completeDirectories
	default:
		for choice := range strings.SplitSeq(f.Value, "|") {
			offers = offer(offers, value, choice, "")
		}
		return offers, completeNothing
	}
}

// is reports whether a word of a command line names the flag. Package flag accepts one dash and two.
func (f Flag) is(word string) bool {
	name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(word, "-"), "-"), "=")
	return strings.HasPrefix(word, "-") && name == f.Name
}

func offer(offers []string, begun, word, means string) []string {
	if !strings.HasPrefix(word, begun) {
		return offers
	}
	return append(offers, strings.TrimSuffix(word+"\t"+means, "\t"))
}
