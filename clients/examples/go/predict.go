// What digit is on a picture, over HTTP: go run predict.go URL PICTURE
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
)

// The fields of an answer that are shown here; docs/api.md lists all of them.
type answer struct {
	Error       string
	Predictions []struct {
		Digit         int
		Probabilities []float64
		Accepted      bool
		Hint          string
	}
}

func main() {
	picture := must(os.Open(os.Args[2])) // of any type: the server looks at the bytes
	response := must(http.Post(os.Args[1]+"/predict?timeout=10", "image/png", picture))
	var found answer
	must(&found, json.NewDecoder(response.Body).Decode(&found))
	if found.Error != "" {
		log.Fatal(found.Error)
	}
	one := found.Predictions[0]
	fmt.Printf("digit %d, probability %.4f, accepted %t %s\n", one.Digit, one.Probabilities[one.Digit], one.Accepted, one.Hint)
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
