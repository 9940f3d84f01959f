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
func Flag(cmd *cobra.Command) { cli.OutputFlag(cmd, new(string)) }

// Printer writes records as a table or as JSON lines.
type Printer struct {
	JSON  bool
	out   io.Writer
	table *table
}

// New returns a printer for the format in --output. heading is the first row of a table.
func New(cmd *cobra.Command, heading ...string) (*Printer, error) {
	format, err := cmd.Flags().GetString("output")
	if err != nil {
		return nil, err
	}
	if err := cli.CheckFormat(format); err != nil {
		return nil, err
	}
	p := &Printer{out: cmd.OutOrStdout(), JSON: format == "json"}
	if p.JSON {
		return p, nil
	}
	p.table = newTable(p.out)
	if len(heading) > 0 {
		return p, p.table.row(heading)
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

// Object prints one record that is not a message: the object as JSON, or the cells as a row.
func (p *Printer) Object(object any, cells ...string) error {
	if !p.JSON {
		return p.table.row(cells)
	}
	return p.encode(object)
}

// Sentence prints one record that has no columns: the object as JSON, or the text.
func (p *Printer) Sentence(object any, text string) error {
	if !p.JSON {
		_, err := fmt.Fprintln(p.out, text)
		return err
	}
	return p.encode(object)
}

func (p *Printer) encode(object any) error {
	b, err := json.Marshal(object)
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

// Close prints the buffered rows of a table.
func (p *Printer) Close() error {
	if p.table == nil {
		return nil
	}
	return p.table.close()
}

// Emit prints one JSON object, or the rows of a table.
func (p *Printer) Emit(object any, rows [][]string) error {
	if p.JSON {
		return p.encode(object)
	}
	for _, cells := range rows {
		if err := p.table.row(cells); err != nil {
			return err
		}
	}
	return p.Close()
}
