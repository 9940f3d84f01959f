package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// outputFlag adds --output to a command that prints records.
func outputFlag(cmd *cobra.Command) {
	cmd.Flags().String("output", "text", "text, or json: one object on a line for each record")
}

// printer writes records as a table or as JSON lines.
type printer struct {
	json  bool
	out   io.Writer
	table *table
}

func newPrinter(cmd *cobra.Command, heading ...string) (*printer, error) {
	format, err := cmd.Flags().GetString("output")
	if err != nil {
		return nil, err
	}
	p := &printer{out: cmd.OutOrStdout()}
	switch format {
	case "json":
		p.json = true
	case "text":
		p.table = newTable(p.out)
		if len(heading) > 0 {
			return p, p.table.row(heading)
		}
	default:
		return nil, &usage{fmt.Sprintf("--output %q: use text or json", format)}
	}
	return p, nil
}

// record prints one record: the message as JSON, or the cells as a row.
func (p *printer) record(m proto.Message, cells ...string) error {
	if !p.json {
		return p.table.row(cells)
	}
	b, err := marshal(m)
	if err != nil {
		return err
	}
	return p.raw(b)
}

// raw prints a JSON object on one line.
func (p *printer) raw(b []byte) error {
	var v json.RawMessage = b
	compact, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s\n", compact)
	return err
}

func (p *printer) close() error {
	if p.table == nil {
		return nil
	}
	return p.table.close()
}

// trimPrefixes drops the package names that errors begin with: a person at a terminal has no use for them.
func trimPrefixes(text string) string {
	parts := strings.Split(text, ": ")
	last := len(parts) - 1
	return strings.Join(append(slices.DeleteFunc(parts[:last:last], func(p string) bool { return packages[p] }), parts[last]), ": ")
}

var packages = map[string]bool{
	"ca": true, "ra": true, "hsm": true, "pki": true, "enroll": true, "revocation": true, "responder": true,
	"translog": true, "server": true, "floor": true, "sqlite": true, "config": true, "ceremony": true,
}
