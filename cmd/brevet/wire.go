package main

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
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// derFields are the fields with DER, which is printed in base64, as in PEM. All other bytes are hashes, serial numbers and
// identifiers, which are printed in hexadecimal.
var derFields = map[protoreflect.Name]bool{"der": true, "certificate": true, "certificates": true, "roots": true, "crl": true}

// marshal returns a record as one line of JSON, in the order of its fields and with those that are empty: bytes as
// derFields says, enumerations by the names that flags take, and everything else as in the JSON form of protobuf.
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
		value = enumText(f.Enum(), v.Enum())
	case protoreflect.BytesKind:
		value = hexText(v.Bytes())
		if derFields[f.Name()] {
			value = base64.StdEncoding.EncodeToString(v.Bytes())
		}
	case protoreflect.Int64Kind:
		value = fmt.Sprint(v.Int()) // as in the JSON form of protobuf: a double would round it
	default:
		value = v.Interface()
	}
	text, err := json.Marshal(value)
	b.Write(text)
	return err
}

// hexText returns bytes as people write them: serial numbers as OpenSSL does, everything else in lower case.
func hexText(b []byte) string {
	if s, err := pki.SerialFromBytes(b); err == nil {
		return s.String()
	}
	return hex.EncodeToString(b)
}

// textOf returns the name of an enumeration's value as flags take it, such as "enrolled" or "keyCompromise", and "" if it
// is unspecified.
func textOf(e protoreflect.Enum) string { return enumText(e.Descriptor(), e.Number()) }

func enumText(d protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	if d.FullName() == "brevet.v1.RevocationReason" {
		return pki.Reason(n).String() //nolint:gosec // a CRLReason code
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

// enumPrefix returns what the names of an enumeration's values begin with, such as "TOKEN_STATE_".
func enumPrefix(d protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(d.Values().ByNumber(0).Name()), "UNSPECIFIED")
}

// enumNumber reads a name that textOf returns. An empty one is unspecified.
func enumNumber(flag string, d protoreflect.EnumDescriptor, text string) (protoreflect.EnumNumber, error) {
	if text == "" {
		return 0, nil
	}
	var names []string
	for i := range d.Values().Len() {
		v := d.Values().Get(i)
		if name := enumText(d, v.Number()); name == text {
			return v.Number(), nil
		} else if name != "" {
			names = append(names, name)
		}
	}
	return 0, &usage{fmt.Sprintf("%s %q: use one of %s", flag, text, strings.Join(names, ", "))}
}

func readKind(flag, text string) (brevetv1.IdentityKind, error) {
	n, err := enumNumber(flag, brevetv1.IdentityKind(0).Descriptor(), text)
	if err != nil {
		return 0, &usage{fmt.Sprintf("%s %q: use device, workload or operator", flag, text)}
	}
	return brevetv1.IdentityKind(n), nil
}

func readTokenState(flag, text string) (brevetv1.TokenState, error) {
	n, err := enumNumber(flag, brevetv1.TokenState(0).Descriptor(), text)
	return brevetv1.TokenState(n), err
}

// readReason reads a name of RFC 5280 section 5.3.1.
func readReason(text string) (brevetv1.RevocationReason, error) {
	if text == "" {
		return brevetv1.RevocationReason_REVOCATION_REASON_UNSPECIFIED, nil
	}
	reason, err := pki.ParseReason(text)
	if err != nil {
		return 0, &usage{"--reason: " + trimPrefixes(err.Error())}
	}
	return brevetv1.RevocationReason(reason), nil
}

// readSerial reads a serial number as OpenSSL and browsers print it.
func readSerial(text string) ([]byte, error) {
	serial, err := pki.ParseSerial(text)
	if err != nil {
		return nil, &usage{trimPrefixes(err.Error()) + ", as openssl x509 -serial prints it"}
	}
	return serial.Bytes(), nil
}

// readHash reads an issuer ID or the hash of a key.
func readHash(flag, text string) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 && len(b) != 0 {
		return nil, &usage{fmt.Sprintf("%s %q: give 64 hexadecimal digits", flag, text)}
	}
	return b, nil
}

// namesFrom makes names from DNS names and IP addresses.
func namesFrom(dns, ips []string) []*brevetv1.Name {
	var all []*brevetv1.Name
	for _, n := range dns {
		all = append(all, &brevetv1.Name{Kind: &brevetv1.Name_Dns{Dns: n}})
	}
	for _, n := range ips {
		all = append(all, &brevetv1.Name{Kind: &brevetv1.Name_Ip{Ip: n}})
	}
	return all
}

func namesText(names []*brevetv1.Name) []string {
	var all []string
	for _, n := range names {
		switch k := n.GetKind().(type) {
		case *brevetv1.Name_Dns:
			all = append(all, k.Dns)
		case *brevetv1.Name_Ip:
			all = append(all, k.Ip)
		case *brevetv1.Name_HardwareModule:
			all = append(all, k.HardwareModule.GetType()+"/"+hex.EncodeToString(k.HardwareModule.GetSerialNumber()))
		case *brevetv1.Name_PermanentIdentifier:
			all = append(all, k.PermanentIdentifier.GetAssigner()+"/"+k.PermanentIdentifier.GetValue())
		}
	}
	return all
}
