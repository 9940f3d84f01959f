package operator

import (
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// enumNumber returns the number of an enum value from its name, as output.Enum prints it. For an empty name it returns
// 0.
func enumNumber(flag string, d protoreflect.EnumDescriptor, text string) (protoreflect.EnumNumber, error) {
	if text == "" {
		return 0, nil
	}
	var names []string
	for i := range d.Values().Len() {
		v := d.Values().Get(i)
		if name := output.EnumName(d, v.Number()); name == text {
			return v.Number(), nil
		} else if name != "" {
			names = append(names, name)
		}
	}
	return 0, cli.WrongUse(fmt.Sprintf("%s %q: use one of %s", flag, text, strings.Join(names, ", ")))
}

func readKind(flag, text string) (brevetv1.IdentityKind, error) {
	n, err := enumNumber(flag, brevetv1.IdentityKind(0).Descriptor(), text)
	if err != nil {
		return 0, cli.WrongUse(fmt.Sprintf("%s %q: use device, workload or operator", flag, text))
	}
	return brevetv1.IdentityKind(n), nil
}

// readRoles parses the names of roles.
func readRoles(names []string) ([]brevetv1.OperatorRole, error) {
	var roles []brevetv1.OperatorRole
	for _, name := range names {
		n, err := enumNumber("--role", brevetv1.OperatorRole(0).Descriptor(), name)
		if err != nil {
			return nil, err
		}
		roles = append(roles, brevetv1.OperatorRole(n))
	}
	return roles, nil
}

func rolesText(roles []brevetv1.OperatorRole) []string {
	var all []string
	for _, r := range roles {
		all = append(all, output.Enum(r))
	}
	return all
}

func readTokenState(flag, text string) (brevetv1.TokenState, error) {
	n, err := enumNumber(flag, brevetv1.TokenState(0).Descriptor(), text)
	return brevetv1.TokenState(n), err
}

// readReason parses the name of a revocation reason (RFC 5280 §5.3.1).
func readReason(text string) (brevetv1.RevocationReason, error) {
	if text == "" {
		return brevetv1.RevocationReason_REVOCATION_REASON_UNSPECIFIED, nil
	}
	reason, err := pki.ParseReason(text)
	if err != nil {
		return 0, cli.WrongFlag("--reason", err)
	}
	return brevetv1.RevocationReason(reason), nil
}

// readSerial parses a serial number in the format of OpenSSL and browsers. It also accepts the whole line that openssl
// x509 -serial prints, which begins with serial=.
func readSerial(text string) ([]byte, error) {
	serial, err := pki.ParseSerial(strings.TrimPrefix(text, "serial="))
	if err != nil {
		return nil, cli.WrongArgument(fmt.Errorf("%w, as openssl x509 -serial prints it", err))
	}
	return serial.Bytes(), nil
}

// readHash parses an issuer ID or the hash of a key, in hexadecimal.
func readHash(flag, text string) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 && len(b) != 0 {
		return nil, cli.WrongUse(fmt.Sprintf("%s %q: give 64 hexadecimal digits", flag, text))
	}
	return b, nil
}

// namesFrom returns DNS names and IP addresses as messages.
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
