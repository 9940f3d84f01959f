package output

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/brevet-pki/brevet/pki"
)

// derFields are the fields that contain DER, which is printed in base64 as in PEM. All other bytes are hashes, serial
// numbers and identifiers, and are printed in hexadecimal.
var derFields = map[protoreflect.Name]bool{"der": true, "certificate": true, "certificates": true, "roots": true, "crl": true}

// marshal returns a record as one line of JSON. It includes empty fields, and keeps the order of fields. It encodes
// bytes as described at derFields, and enum values by the names that flags accept. All other values are as in the JSON
// form of protobuf.
func marshal(m proto.Message) ([]byte, error) {
	var b bytes.Buffer
	err := writeJSON(&b, m.ProtoReflect())
	return b.Bytes(), err
}

func writeJSON(b *bytes.Buffer, m protoreflect.Message) error {
	if m.Descriptor().ParentFile().Package() == "google.protobuf" {
		text, err := protojson.Marshal(m.Interface())
		b.Write(text)
		return err
	}
	separator := byte('{')
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		if f.HasPresence() && f.Message() == nil && !m.Has(f) || f.ContainingOneof() != nil && !m.Has(f) {
			continue
		}
		b.WriteByte(separator)
		separator = ','
		fmt.Fprintf(b, "%q:", f.Name())
		if err := writeField(b, f, m); err != nil {
			return err
		}
	}
	if separator == '{' {
		b.WriteByte('{')
	}
	b.WriteByte('}')
	return nil
}

func writeField(b *bytes.Buffer, f protoreflect.FieldDescriptor, m protoreflect.Message) error {
	switch {
	case f.IsList():
		list := m.Get(f).List()
		b.WriteByte('[')
		for i := range list.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeValue(b, f, list.Get(i)); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	case f.IsMap():
		all := map[string]protoreflect.Value{}
		m.Get(f).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool { all[k.String()] = v; return true })
		b.WriteByte('{')
		for i, k := range slices.Sorted(maps.Keys(all)) {
			if i > 0 {
				b.WriteByte(',')
			}
			name, err := json.Marshal(k)
			if err != nil {
				return err
			}
			b.Write(append(name, ':'))
			if err := writeValue(b, f.MapValue(), all[k]); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	case f.Message() != nil && !m.Has(f):
		b.WriteString("null")
		return nil
	default:
		return writeValue(b, f, m.Get(f))
	}
}

func writeValue(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	var value any
	switch f.Kind() {
	case protoreflect.MessageKind:
		return writeJSON(b, v.Message())
	case protoreflect.EnumKind:
		value = EnumName(f.Enum(), v.Enum())
	case protoreflect.BytesKind:
		value = Hex(v.Bytes())
		if derFields[f.Name()] {
			value = base64.StdEncoding.EncodeToString(v.Bytes())
		}
	case protoreflect.Int64Kind:
		value = fmt.Sprint(v.Int()) // as a string, like in the JSON form of protobuf: JavaScript would round a number
	default:
		value = v.Interface()
	}
	text, err := json.Marshal(value)
	b.Write(text)
	return err
}

// Hex formats bytes in hexadecimal. It formats serial numbers like OpenSSL, and other bytes in lower case.
func Hex(b []byte) string {
	if s, err := pki.SerialFromBytes(b); err == nil {
		return s.String()
	}
	return hex.EncodeToString(b)
}

// Enum returns the name of an enum value as flags accept it, such as "enrolled" or "keyCompromise". It returns "" for
// the unspecified value.
func Enum(e protoreflect.Enum) string { return EnumName(e.Descriptor(), e.Number()) }

// EnumName returns the name of an enum value, like Enum.
func EnumName(d protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	if d.FullName() == "brevet.v1.RevocationReason" {
		return pki.Reason(n).String() //nolint:gosec // n is a CRLReason code
	}
	v := d.Values().ByNumber(n)
	if v == nil {
		return fmt.Sprint(n)
	}
	name := strings.ToLower(strings.TrimPrefix(string(v.Name()), enumPrefix(d)))
	if name == "unspecified" {
		return ""
	}
	return name
}

// enumPrefix returns the common prefix of an enum's value names, such as "TOKEN_STATE_".
func enumPrefix(d protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(d.Values().ByNumber(0).Name()), "UNSPECIFIED")
}
