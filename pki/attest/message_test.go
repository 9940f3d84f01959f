package attest_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/brevet-pki/brevet/pki/attest"
)

func TestMessagesSurviveEncoding(t *testing.T) {
	device := attest.Device{EK: []byte("ek"), EKCertificate: []byte{}, AK: []byte("ak")}
	challenge := attest.Challenge{Sealed: []byte("sealed"), Credential: []byte("credential"), Secret: []byte("secret")}
	response := attest.Response{
		Sealed: []byte("sealed"), Secret: []byte("secret"), AK: []byte("ak"), Key: []byte("key"), Statement: []byte("statement"), Signature: []byte("signature"),
	}
	encoded := [][]byte{encode(t, device), encode(t, challenge), encode(t, response)}
	d, err := attest.ParseDevice(encoded[0])
	if err != nil || !cmp.Equal(d, device) {
		t.Errorf("got %v, %v", d, err)
	}
	c, err := attest.ParseChallenge(encoded[1])
	if err != nil || !cmp.Equal(c, challenge) {
		t.Errorf("got %v, %v", c, err)
	}
	r, err := attest.ParseResponse(encoded[2])
	if err != nil || !cmp.Equal(r, response) {
		t.Errorf("got %v, %v", r, err)
	}
	if want := "\x00\x02ek\x00\x00\x00\x02ak"; string(encoded[0]) != want {
		t.Errorf("the message is %q, want %q", encoded[0], want)
	}
	for i := range encoded[2] {
		if _, err := attest.ParseResponse(encoded[2][:i]); err == nil {
			t.Errorf("the first %d of %d bytes of a response parse", i, len(encoded[2]))
		}
	}
}

func encode(t testing.TB, m interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMessagesAreBounded(t *testing.T) {
	if _, err := (attest.Device{EK: make([]byte, 2000)}).Marshal(); !attest.IsTooLong(err) {
		t.Errorf("a long field is encoded: %v", err)
	}
	for name, c := range map[string]struct {
		b       []byte
		tooLong bool
	}{
		"a message over the maximum": {make([]byte, attest.MaxMessage+1), true},
		"a field over the maximum":   {append([]byte{4, 1}, make([]byte, 0x401)...), true},
		"data after the last field":  {make([]byte, 7), false},
		"a field that is cut off":    {[]byte{0, 5, 1}, false},
		"nothing":                    {nil, false},
	} {
		if _, err := attest.ParseDevice(c.b); err == nil || attest.IsTooLong(err) != c.tooLong {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestCertificateDER(t *testing.T) {
	der := []byte("\x30\x03\x02\x01\x01")
	for name, c := range map[string]struct{ stored, want string }{
		"plain":                     {string(der), string(der)},
		"filled with zeros":         {string(der) + strings.Repeat("\x00", 100), string(der)},
		"filled with ones":          {string(der) + strings.Repeat("\xff", 100), string(der)},
		"wrapped":                   {"\x10\x01\x00\x00\x05" + string(der), string(der)},
		"wrapped and filled":        {"\x10\x01\x00\x00\x05" + string(der) + "\xff\xff", string(der)},
		"wrapped with a full cert":  {"\x10\x01\x00\x00\x07\x10\x02" + string(der), string(der)},
		"wrapped and padded inside": {"\x10\x01\x00\x00\x07" + string(der) + "\x00\x00", string(der)},
		"empty":                     {"", ""},
		"zeros":                     {strings.Repeat("\x00", 100), ""},
		"cut off":                   {string(der[:4]), ""},
		"followed by data":          {string(der) + "\x01", ""},
		"mixed padding":             {string(der) + "\x00\xff", ""},
		"a partial certificate":     {"\x10\x01\x01\x00\x05" + string(der), ""},
	} {
		got, err := attest.CertificateDER([]byte(c.stored))
		if string(got) != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s: got %x, %v, want %x", name, got, err, c.want)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(encode(f, attest.Device{EK: []byte("ek")}))
	f.Add(encode(f, attest.Response{Sealed: []byte("sealed")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := attest.ParseDevice(b); err == nil && !bytes.Equal(encode(t, d), b) {
			t.Fatalf("%x is another message after encoding it again: %v", b, d)
		}
		if c, err := attest.ParseChallenge(b); err == nil && !bytes.Equal(encode(t, c), b) {
			t.Fatalf("%x is another message after encoding it again: %v", b, c)
		}
		if r, err := attest.ParseResponse(b); err == nil && !bytes.Equal(encode(t, r), b) {
			t.Fatalf("%x is another message after encoding it again: %v", b, r)
		}
	})
}

func FuzzCertificateDER(f *testing.F) {
	f.Add([]byte("\x10\x01\x00\x00\x07\x10\x02\x30\x03\x02\x01\x01\x00"))
	f.Fuzz(func(t *testing.T, stored []byte) {
		der, err := attest.CertificateDER(stored)
		if err == nil && !bytes.Contains(stored, der) {
			t.Fatalf("%x is not part of %x", der, stored)
		}
		if again, errAgain := attest.CertificateDER(der); err == nil && (errAgain != nil || !bytes.Equal(again, der)) {
			t.Fatalf("%x has the certificate %x, %v", der, again, errAgain)
		}
	})
}
