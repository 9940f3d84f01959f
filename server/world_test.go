package server_test

import (
	"testing"

	"github.com/brevet-pki/brevet/server/servertest"
)

func TestWorld(t *testing.T) {
	w := servertest.New(t, ground, servertest.Options{})
	h := w.Enrolled(t, "device", "device/1")
	w.Renewed(t, h, servertest.Key(t))
	w.Revoke(t, h.Certificate, "keyCompromise")
}
