package output

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
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
	Table *table
}

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
		p.Table = newTable(p.out)
		if len(heading) > 0 {
			return p, p.Table.Row(heading)
		}
	default:
		return nil, cli.WrongUse(fmt.Sprintf("--output %q: use text or json", format))
	}
	return p, nil
}

// Record prints one record: the message as JSON, or the cells as a row.
func (p *Printer) Record(m proto.Message, cells ...string) error {
	if !p.JSON {
		return p.Table.Row(cells)
	}
	b, err := marshal(m)
	if err != nil {
		return err
	}
	return p.Raw(b)
}

func marshal(m proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
}

// Raw prints a JSON object on one line; protojson varies its white space on purpose, and scripts should not see that.
func (p *Printer) Raw(b []byte) error {
	var v json.RawMessage = b
	compact, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.out, "%s\n", compact)
	return err
}

func (p *Printer) Close() error {
	if p.Table == nil {
		return nil
	}
	return p.Table.close()
}

// Emit prints one JSON object, or rows of a table.
func (p *Printer) Emit(object any, rows [][]string) error {
	if p.JSON {
		b, err := json.Marshal(object)
		if err != nil {
			return err
		}
		return p.Raw(b)
	}
	for _, cells := range rows {
		if err := p.Table.Row(cells); err != nil {
			return err
		}
	}
	return p.Close()
}
