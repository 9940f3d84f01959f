package output

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/internal/cli"
)

// Flag adds --output to a command that prints records.
func Flag(cmd *cobra.Command) {
	cmd.Flags().String("output", "text", "text, or json: one object on a line for each record")
}

// Printer writes records as a table or as JSON lines.
type Printer struct {
	JSON  bool
	out   io.Writer
	table *table
}

// New returns a printer for the format in --output. The heading is the first row of a table.
func New(cmd *cobra.Command, heading ...string) (*Printer, error) {
	format, err := cmd.Flags().GetString("output")
	if err != nil {
		return nil, err
	}
	p := &Printer{out: cmd.OutOrStdout()}
	switch format {
	case "json":
		p.JSON = true
	case "text":
		p.table = newTable(p.out)
		if len(heading) > 0 {
			return p, p.table.row(heading)
		}
	default:
		return nil, cli.WrongUse(fmt.Sprintf("--output %q: use text or json", format))
	}
	return p, nil
}

// Row prints a row of a table.
func (p *Printer) Row(cells []string) error { return p.table.row(cells) }

// Record prints one record: the message as JSON, or the cells as a row.
func (p *Printer) Record(m proto.Message, cells ...string) error {
	if !p.JSON {
		return p.table.row(cells)
	}
	b, err := marshal(m)
	if err != nil {
		return err
	}
	return p.Raw(b)
}

// Raw prints a JSON object on one line.
func (p *Printer) Raw(b []byte) error {
	var v json.RawMessage = b
	compact, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s\n", compact)
	return err
}

// Close writes the rest of a table.
func (p *Printer) Close() error {
	if p.table == nil {
		return nil
	}
	return p.table.close()
}

// Emit prints one JSON object, or the rows of a table.
func (p *Printer) Emit(object any, rows [][]string) error {
	if p.JSON {
		b, err := json.Marshal(object)
		if err != nil {
			return err
		}
		return p.Raw(b)
	}
	for _, cells := range rows {
		if err := p.table.row(cells); err != nil {
			return err
		}
	}
	return p.Close()
}
