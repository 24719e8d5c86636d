module example.com/mnist-predict

go 1.19
