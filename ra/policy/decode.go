package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/pki"
)

// Limits of a document.
const (
	maxDocument = 1 << 20 // bytes
	maxNodes    = 1 << 18 // keys and values
	maxDepth    = 16
)

// decoder decodes YAML strictly, and collects the faults that it finds.
type decoder struct {
	faults Faults
	within string // name of the rule or test case that is being decoded, for faults
}

// fault records a fault at a node.
func (d *decoder) fault(n *yaml.Node, key, problem string, args ...any) {
	d.faultAt(n.Line, key, problem, args...)
}

func (d *decoder) faultAt(line int, key, problem string, args ...any) {
	if len(d.faults) < maxFaults {
		d.faults = append(d.faults, Fault{line, d.within, key, fmt.Sprintf(problem, args...)})
	}
}

// err returns the faults in the order of their lines, or nil if there are none.
func (d *decoder) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b Fault) int { return a.Line - b.Line })
	return d.faults
}

// root parses a text and returns the node of its only document. If the text is not usable, root records a fault and
// returns nil.
func (d *decoder) root(text []byte) *yaml.Node {
	if len(text) > maxDocument {
		d.faultAt(0, "", "the document has %d bytes: write at most %d", len(text), maxDocument)
		return nil
	}
	var document, second yaml.Node
	parser := yaml.NewDecoder(bytes.NewReader(text))
	err := parser.Decode(&document)
	if errors.Is(err, io.EOF) {
		d.faultAt(0, "", "the document is empty: write keys with values")
		return nil
	}
	if err == nil {
		err = parser.Decode(&second)
		if err == nil {
			d.fault(&second, "", "a second document starts here: write one")
			return nil
		}
	}
	if !errors.Is(err, io.EOF) {
		d.syntax(err)
		return nil
	}
	nodes := 0
	if !d.plain(document.Content[0], 1, &nodes) {
		return nil
	}
	return document.Content[0]
}

// syntax records an error of package yaml, whose message starts with "yaml: line 3: ".
func (d *decoder) syntax(err error) {
	line, problem := 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if _, scanErr := fmt.Sscanf(problem, "line %d:", &line); scanErr == nil {
		_, problem, _ = strings.Cut(problem, ": ")
	}
	d.faultAt(line, "", "this is not YAML: %s", problem)
}

// plain reports whether a node and all nodes below it have no aliases and are not too many. It records a fault if not.
func (d *decoder) plain(n *yaml.Node, depth int, nodes *int) bool {
	*nodes++
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fault(n, "", "aliases and anchors are not allowed: write the value out")
		return false
	case depth > maxDepth:
		d.fault(n, "", "the values are nested too deeply: nest at most %d", maxDepth)
		return false
	case *nodes > maxNodes:
		d.fault(n, "", "the document has too many values: write at most %d", maxNodes)
		return false
	}
	for _, child := range n.Content {
		if !d.plain(child, depth+1, nodes) {
			return false
		}
	}
	return true
}

// A field decodes the value of a key.
type field func(key string, value *yaml.Node)

// keys decodes keys with values. It records a fault for a key without a value.
func (d *decoder) keys(n *yaml.Node, at string, fields map[string]field) {
	d.pairs(n, at, func(key, value *yaml.Node, at string) {
		decode, ok := fields[key.Value]
		if !ok {
			d.fault(key, at, "%s", Unknown("key", key.Value, slices.Sorted(maps.Keys(fields))))
			return
		}
		if value.Kind == yaml.ScalarNode && value.ShortTag() == "!!null" {
			d.fault(key, at, "the key has no value: write one, or remove the key") // an empty condition would match everything
			return
		}
		decode(at, value)
	})
}

// pairs calls each for every key with a value. It records a fault for repeated keys and keys that are not plain words.
func (d *decoder) pairs(n *yaml.Node, at string, each func(key, value *yaml.Node, at string)) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, at, `keys with values belong here, such as "key: value"`)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := strings.TrimPrefix(at+"."+key.Value, ".")
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge":
			d.fault(key, at, "a key must be a plain word")
		case seen[key.Value]:
			d.fault(key, path, "this key occurs twice: keep one")
		default:
			each(key, value, path)
		}
		seen[key.Value] = true
	}
}

// list calls each for every item of a list.
func (d *decoder) list(n *yaml.Node, key string, most int, each func(key string, item *yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		d.fault(n, key, "a list belongs here, such as [a, b]")
		return
	}
	if len(n.Content) > most {
		d.fault(n, key, "the list has %d items: write at most %d", len(n.Content), most)
		return
	}
	for i, item := range n.Content {
		each(key+"["+strconv.Itoa(i)+"]", item)
	}
}

// text returns a text. A number or a truth value counts as text, too.
func (d *decoder) text(n *yaml.Node, key string) string {
	switch {
	case n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0:
		d.fault(n, key, "a text belongs here: put a text that starts with { between quotes")
	case n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null":
		d.fault(n, key, "a text belongs here")
	case n.Value == "":
		d.fault(n, key, "the text is empty: write one, or remove the key")
	}
	return n.Value
}

func (d *decoder) truth(n *yaml.Node, key string) bool {
	var b bool
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(&b) != nil {
		d.fault(n, key, "true or false belongs here")
	}
	return b
}

func (d *decoder) duration(n *yaml.Node, key string) time.Duration {
	v, err := pki.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		d.fault(n, key, "a duration with its unit belongs here, such as 30s, 12h or 7d")
	}
	return v
}

func (d *decoder) number(n *yaml.Node, key string, most int) int {
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v < 1 || v > most {
		d.fault(n, key, "a whole number from 1 to %d belongs here", most)
	}
	return v
}
